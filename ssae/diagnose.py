"""ssae diagnose: how far dictionaries are from what every L1 optimum must satisfy (ssae/theory).

metrics.json   rows of every SAE on both test splits (diagnosis/rows.py)
tables.json    by SAE and split: violations, rarity, worst, spectrum, types, pairs, cones; and gaps,
               splits, drawn and listed by diagnose.html
"""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.artifact.replace import write_text
from ssae.artifact.store import Artifact, build
from ssae.corpus.base import TESTS
from ssae.diagnosis.measure import Diagnosis, Types, diagnose_split
from ssae.diagnosis.risk import risk_of
from ssae.diagnosis.rows import Draws, diagnosis_rows, gap_rows
from ssae.diagnosis.saes import find, load
from ssae.diagnosis.tables import gap_table, split_table, split_tables
from ssae.harvest import harvest
from ssae.metric.frequency import frequency_of
from ssae.metric.tail import tail_types
from ssae.process.progress import progress_bar
from ssae.read_pool import read_corpus
from ssae.retrieve import retrieve
from ssae.sae.base import SparseAutoencoder
from ssae.study import Study
from ssae.theory.coded import coded_by
from ssae.theory.gap import optimality_gap
from ssae.theory.penalty import lam_of_l0, penalty_of
from ssae.theory.splits import splits_of
from ssae.tokenise import tokenise

log = logging.getLogger(__name__)

LAM_TOKENS = 256
"""On which the price of the common scale is found."""
DOCUMENT_TOKENS = 2**16
"""Read at a time to know their documents."""


def diagnose(study: Study) -> Artifact:
    """Return what the theory says of every SAE, training the arms that are not trained yet.

    Raises:
        ValueError: an SAE does not belong to the activations, or none of its latents fires.
    """
    found = find(study)
    corpus = read_corpus(study)
    harvested = {split: harvest(study, corpus, split, study.evaluation_tokens) for split in TESTS}
    pool_sample = retrieve(study, study.frequency_retriever, study.frequency_tokens)
    inputs = {
        "saes": {name: one.identity for name, one in found.items()},
        "input_scales": {name: one.input_scale for name, one in found.items()},
        "splits": harvested,
        "pool_sample": pool_sample,
        "diagnose": study.diagnose,
        "num_bootstraps": study.num_bootstraps,
        "seed": study.seed,
        "format": 2,
    }

    def make(folder: Path) -> dict[str, Any]:
        settings, lm = study.diagnose, study.language_model
        activations = {split: Activations(harvested[split]) for split in TESTS}
        saes = {
            name: load(one, activations["general_test"]).to(lm.device_used)
            for name, one in found.items()
        }
        # What can be refused is before the long work.
        parts = _gap_tokens(study, activations["subdomain_test"])
        x, held_out = (part.to(lm.device_used) for part in parts)
        first = next(iter(saes))
        lam = settings.lam or 0.0
        if not lam and settings.gap_tokens:
            lam = _common_lam(saes[first], x, found[first].input_scale)
        pool_counts = Rows(tokenise(study, pool_sample)).token_counts
        types = {split: _types(pool_counts, own.token_counts) for split, own in activations.items()}
        risks = {name: risk_of(study, one.arm) if one.arm else None for name, one in found.items()}
        metrics: list[dict[str, Any]] = []
        tables: dict[str, list[dict[str, Any]]] = {}
        relatives = {name: one.relatives for name, one in found.items()}
        draws = Draws(study.num_bootstraps, study.seed)
        num_parts = len(TESTS) + (settings.gap_tokens > 0)
        with progress_bar("diagnosing", len(saes) * num_parts) as progress:
            [task] = progress.tasks

            def step(what: str) -> None:
                progress.update(task.id, advance=1, rate=what)

            for split in TESTS:
                diagnoses = {}
                for name, sae in saes.items():
                    own = diagnose_split(
                        sae, activations[split], types[split], settings, found[name].input_scale,
                        risks[name],
                    )  # fmt: skip
                    diagnoses[name] = own
                    for table, rows in split_tables(own, settings.min_fires, lm.tokenizer).items():
                        where = {"sae": name, "split": split}
                        tables.setdefault(table, []).extend(where | entry for entry in rows)
                    step(f"{name}, {split}")
                metrics += diagnosis_rows(diagnoses, relatives, split, settings.min_fires, draws)
                if split == "subdomain_test":
                    tables["splits"] = _splits(saes, diagnoses, lm.tokenizer)
            gaps = {}
            for name, sae in saes.items() if settings.gap_tokens else ():
                gaps[name] = optimality_gap(sae, x, lam, held_out)
                step(f"{name}, scale of objectives")
        tables["gaps"] = gap_table(gaps)
        metrics += gap_rows(gaps, "subdomain_test", settings.gap_tokens)
        for name, content in (("metrics", metrics), ("tables", tables)):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(folder / f"{name}.json", text)
        return {"num_metrics": len(metrics), "saes": {n: str(s.folder) for n, s in found.items()}}

    return build(study.artifacts, "diagnose", inputs, make)


def _types(pool_counts: Tensor, counts: Tensor) -> Types:
    """Return what is known of token types from counts in a sample of the pool, and in the split."""
    # A type that does not occur counts as half a one.
    per_million = pool_counts.double().clamp_min(0.5) * (1e6 / pool_counts.sum().clamp_min(1))
    whole = np.ones((1, 1))
    return Types(
        per_million.log10(), tail_types(frequency_of(pool_counts).ranks, counts, whole).ids
    )


def _common_lam(sae: SparseAutoencoder, x: Tensor, input_scale: float | None) -> float:
    """Return the price that the first SAE pays, or at which optimal codes are as sparse as its own.

    Raises:
        ValueError: no price makes them so dense.
    """
    own = coded_by(sae, x)
    lam, origin, *_ = penalty_of(sae, own, input_scale)
    if lam > 0:
        how = "estimated" if origin == "estimated" else "by its objective"
        log.info("the scale of objectives has lam %.4g: what the first SAE pays, %s", lam, how)
        return lam
    try:
        l0 = float(own.z.num_active().double().mean())
        lam = lam_of_l0(own.x[:LAM_TOKENS], own.directions, l0)
    except ValueError as error:
        raise ValueError(
            f"{error}; set diagnose.lam to a price, or diagnose.gap_tokens=0"
        ) from error
    log.info(
        "the scale of objectives has lam %.4g: optimal codes as sparse as the first SAE's", lam
    )
    return lam


def _gap_tokens(study: Study, activations: Activations) -> list[Tensor]:
    """Return two sets of tokens of different documents, (gap_tokens, d_in) each.

    Raises:
        ValueError: the split has too few of them.
    """
    num = study.diagnose.gap_tokens
    if num == 0:  # no documents need to be read
        return [activations.slice(0, 0).activations] * 2
    starts = range(0, len(activations), DOCUMENT_TOKENS)
    slices = (activations.slice(start, start + DOCUMENT_TOKENS) for start in starts)
    documents = torch.cat([tokens.document_ids for tokens in slices])
    generator = torch.Generator().manual_seed(study.seed)
    parts = []
    for half in (0, 1):
        own = (documents % 2 == half).nonzero()[:, 0]
        if len(own) < num:
            raise ValueError(
                f"diagnose.gap_tokens ({num}) is more than the {len(own)} tokens of half of the "
                f"test documents; set diagnose.gap_tokens={len(own)}"
            )
        chosen = own[torch.randperm(len(own), generator=generator)[:num]]
        parts.append(activations.rows(chosen.sort().values).activations)
    return parts


def _splits(
    saes: dict[str, SparseAutoencoder], diagnoses: dict[str, Diagnosis], tokenizer: Any
) -> list[dict[str, Any]]:
    """Return how latents split from each width to the next, of the first SAE of every width."""
    by_width = {sae.d_sae: name for name, sae in reversed(saes.items())}
    samples = {name: own.sample for name, own in diagnoses.items()}
    found = []
    for narrow, wide in itertools.pairwise(by_width[width] for width in sorted(by_width)):
        splits = splits_of(samples[narrow].batch, samples[wide].batch)
        found.append(split_table(narrow, wide, splits, samples, tokenizer))
    return found
