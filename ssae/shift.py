"""ssae shift: take a spurious attribute out of a classifier by ablating the latents that carry it.

metrics.json       rows of every method (probe/rows.py), with intervals over seeds and documents
sections.json      candidates of every SAE, with contexts: what candidates.html shows
candidates.yaml    the same for a person to judge; shift.candidates=FILE continues from it
candidates.html    what each candidate reads
manifest.json      groups, documents left out
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from ssae.artifact.manifest import file_sha256
from ssae.artifact.replace import write_text
from ssae.artifact.store import Artifact, build
from ssae.harvest import harvest_all, harvest_all_for
from ssae.probe.candidates import Judge, fingerprints, read_candidates, write_candidates
from ssae.probe.contexts import sections_of
from ssae.probe.dictionary import Key, narrowed, train_dictionary
from ssae.probe.documents import load_groups, write_documents
from ssae.probe.folds import folds_of
from ssae.probe.read import read, resolved, rows_of
from ssae.probe.rows import metric_rows
from ssae.probe.trial import run_seed
from ssae.process.progress import progress_bar
from ssae.report.candidates import write_candidates_page
from ssae.study import Study

log = logging.getLogger(__name__)


def shift(study: Study) -> Artifact:
    """Return the case study of one model: every row of its table, and what a person may judge.

    Raises:
        ValueError: a group of documents is too small, an SAE reads behind the probe, or an edited
            file is of other SAEs.
    """
    _check(study)
    study, hookpoints = resolved(study)
    groups, left_out = load_groups(study)
    log.info("labelled documents: %s; left out: %s", groups.spell_counts(), left_out)
    settings = study.shift
    for seed in settings.seeds:  # before the time that training takes
        folds_of(groups, settings.num_folds, seed, settings.min_documents)
    keys = [
        Key(arm, width, seed)
        for seed in settings.seeds
        for width in settings.widths
        for arm in settings.arms
    ]
    for key in keys:
        own = narrowed(study, key, hookpoints[0], hookpoints[1:])  # likewise
        if len(hookpoints) > 1:  # all in the same passes
            harvest_all_for(own, key.arm)
    trained = {(key, at): train_dictionary(study, key, at) for key in keys for at in hookpoints}
    documents = write_documents(study, groups)
    known = fingerprints({place: artifact.path for place, artifact in trained.items()})
    judged, candidates = None, None
    if settings.candidates is not None:
        path = Path(settings.candidates).expanduser()
        judged, candidates = read_candidates(path, known), file_sha256(path)
    sets = rows_of(study, documents)
    inputs = {
        "rows": {name: rows.artifact for name, rows in sets.items()},
        "labels": [groups.label.tolist(), groups.spurious.tolist(), groups.splits.tolist()],
        "saes": {f"{key} {at}": artifact for (key, at), artifact in trained.items()},
        "candidates": candidates,
        "shift": settings,
        "language_model": study.language_model.identity(),
        "hookpoint": study.hookpoint,
        "num_bootstraps": study.num_bootstraps,
        "seed": study.seed,
        "format": 3,
    }

    # Before the artifact's own work, which one rank does: these passes are every rank's.
    evidence, dictionaries, directions = read(study, groups, sets, trained)
    shown = harvest_all(
        dataclasses.replace(study, packing="documents"), documents, hookpoints, "shown"
    )

    def make(folder: Path) -> dict[str, Any]:
        judgement = Judge(settings.min_selectivity, judged)
        outcomes = []
        num_folds = settings.num_folds or 1
        with progress_bar("probing", len(settings.seeds) * num_folds) as progress:
            [task] = progress.tasks
            for seed in settings.seeds:
                own = [d for key, d in dictionaries.items() if key.seed == seed]
                step = lambda: progress.advance(task.id)  # noqa: E731
                outcomes.append(run_seed(study, evidence, own, judgement, seed, step))
        metrics = metric_rows(settings, evidence, outcomes, study.num_bootstraps, study.seed)
        sections = sections_of(study, shown, groups, dictionaries, outcomes, judgement, directions)
        for section in sections:
            key = Key(section["arm"], section["width"], section["seed"])
            section["sae"] = known[key, section["hookpoint"]]
        for name, content in (("metrics", metrics), ("sections", sections)):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(folder / f"{name}.json", text)
        final = folder.with_suffix("") / "candidates.yaml"
        write_candidates(folder / "candidates.yaml", sections, final)
        write_candidates_page(folder / "candidates.html", study.name, sections)
        counts = dict(zip(groups.names, groups.counts.tolist(), strict=True))
        return {"groups": counts, **left_out, "num_metrics": len(metrics)}

    return build(study.artifacts, "shift", inputs, make)


def _check(study: Study) -> None:
    """Refuse what would fail after hours of training."""
    settings = study.shift
    for option in ("generalist", "specialist", "control"):
        arm = getattr(settings, option)
        if arm is not None and arm not in study.arms:
            raise ValueError(
                f"shift.{option} must be one of {', '.join(study.arms)}, got {arm!r}; "
                f"set shift.{option}={next(iter(study.arms))}"
            )
    if len(set(settings.arms)) < len(settings.arms):
        raise ValueError(
            f"shift compares different arms, got {settings.arms}; set shift.specialist=specialist"
        )
    if settings.candidates is not None and not Path(settings.candidates).expanduser().is_file():
        raise ValueError(
            f"shift.candidates: there is no file {settings.candidates}; set shift.candidates=null "
            "to write one"
        )
