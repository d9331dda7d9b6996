"""What `ssae shift` reads: every set of documents, by the model and by all SAEs, in few passes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from scipy import sparse
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact
from ssae.labelled.base import LabelledTexts
from ssae.probe.candidates import Place
from ssae.probe.concepts import concept_features
from ssae.probe.dictionary import Dictionary, Key
from ssae.probe.erase import embedding_edit
from ssae.probe.judge import aurocs, selectivity
from ssae.probe.represent import Site
from ssae.probe.stored import kept, represent_all
from ssae.probe.trial import Evidence
from ssae.sae.files import load
from ssae.study import Study
from ssae.tokenise import tokenise

Sets = Mapping[str, Rows]
Read = tuple[Tensor, dict[Path, sparse.csr_array]]
Directions = dict[str, tuple[Tensor, ...]]
"""{hookpoint: pooled activations of the first and of the second reading}."""


def resolved(study: Study) -> tuple[Study, list[str]]:
    """Return the study with the probe's hookpoint in full, and the hookpoints of the SAEs.

    Raises:
        ValueError: an SAE would read what the probe does not depend on.
    """
    lm = study.language_model
    hookpoint = lm.resolve(study.hookpoint)
    hookpoints = [lm.resolve(name) for name in study.shift.hookpoints or [hookpoint]]
    for name in hookpoints:
        seen: list[str] = []

        def note(x: Tensor, name: str = name, seen: list[str] = seen) -> Tensor:
            seen.append(name)
            return x

        with torch.no_grad():
            lm.capture_spliced(torch.zeros(1, 2, dtype=torch.int64), hookpoint, {name: note})
        if not seen:
            raise ValueError(
                f"shift.hookpoints must lie before the probe's, {hookpoint}, which does not depend "
                f"on {name}; set hookpoint=<a later one> or leave {name} out"
            )
    return dataclasses.replace(study, hookpoint=hookpoint, hookpoints=hookpoints), hookpoints


def rows_of(study: Study, documents: Artifact) -> dict[str, Rows]:
    """Return the rows of every set of documents, a row for one document alone."""
    apart = dataclasses.replace(study, packing="documents")
    names = [name.removeprefix("num_") for name in documents.manifest if name.startswith("num_")]
    return {name: Rows(tokenise(apart, documents, name)) for name in names}


def read(
    study: Study,
    groups: LabelledTexts,
    sets: Sets,
    trained: Mapping[Place, Artifact],
) -> tuple[Evidence, dict[Key, Dictionary], Directions]:
    """Return what all seeds share, and every seed's SAEs with what they make of the documents.

    Every rank calls it.
    """
    lm, settings, hookpoint = study.language_model, study.shift, study.hookpoint
    saes = {artifact.path: at for (_, at), artifact in trained.items()}
    x, latents = represent_all(study, sets["documents"], hookpoint, saes)
    others: dict[str, Tensor] = {}
    if "deleted" in sets:
        others["words_deleted"] = kept(study, sets["deleted"], hookpoint)
        at, edit = embedding_edit(lm, settings.word_pairs)
        how = {"name": "embedding", "hookpoint": at, "edit": edit, "words": settings.word_pairs}
        others["embedding_projection"] = kept(study, sets["documents"], hookpoint, how)
    readings: list[Read] = []
    directions: Directions = {}
    if "exchanged_0" in sets:
        sides = [sets["exchanged_0"], sets["exchanged_1"]]
        readings = [represent_all(study, side, hookpoint, saes) for side in sides]
        for at in dict.fromkeys(saes.values()):
            directions[at] = tuple(kept(study, side, at) for side in sides)
    concepts = None
    if settings.concepts:
        concepts = concept_features(lm, x, settings.concepts, hookpoint, study.bos)
    exchanged = (readings[0][0], readings[1][0]) if readings else None
    evidence = Evidence(groups, sets["documents"], x, others, exchanged, concepts)
    dictionaries = {}
    for key in dict.fromkeys(key for key, _ in trained):
        own = {at: artifact.path for (other, at), artifact in trained.items() if other == key}
        paths = list(own.values())
        sites = [Site(at, load(path).to(lm.device_used)) for at, path in own.items()]
        joined = sparse.csr_array(sparse.hstack([latents[path] for path in paths]))
        first, second = (
            (
                sparse.csr_array(sparse.hstack([side[path] for path in paths]))
                for _, side in readings
            )
            if readings
            else (joined[:0], joined[:0])
        )  # nothing to tell by: a person judges
        told = (selectivity(first, second), aurocs(first, second))
        dictionaries[key] = Dictionary(key, hookpoint, sites, joined, *told)
    return evidence, dictionaries, directions
