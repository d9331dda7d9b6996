"""The jobs that runs and sweeps left in folders: their overrides and every number they measured."""

import collections
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ssae.report.table import Metric, number
from ssae.sweep.outcome import FILE, metrics, read

Key = tuple[str, str]
"""A metric's name and the split it was measured on."""
ELSEWHERE = ("logger", "run_dir", "runs", "artifacts", "hydra")
"""Overrides that say where results go, not what they are of."""
REFERENCE = "generalist"
"""The SAE that the others of a job are compared with."""
MEASURED_ON = ("corpus", "language_model", "hookpoint", "context_length")
FOLDER = "folder"
"""Stands among the overrides where jobs of several folders cannot be told apart otherwise."""


class Job(NamedTuple):
    """One job of a sweep, or one run."""

    folder: Path
    outcome: dict[str, Any]
    overrides: dict[str, str]
    """Its verb and overrides, those that not all jobs have in common."""
    numbers: dict[tuple[str, str, str], float]
    """Of every arm over all bands, by (metric, split, arm); differences from REFERENCE alone."""
    measured_on: str = ""
    """Corpus and language model: numbers of jobs that differ in them cannot be ranked."""

    @property
    def finished(self) -> bool:
        """Whether it did its work."""
        return self.outcome["status"] == "finished"

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The overrides but the seed, by which jobs are averaged."""
        return tuple((k, v) for k, v in self.overrides.items() if k != "seed")

    @property
    def words(self) -> str:
        """The overrides as they were typed."""
        return " ".join(f"{k}={v}" for k, v in self.overrides.items()) or self.folder.name

    def value(self, key: Key, arm: str | None = None) -> float | None:
        """Return a number of an arm, the job's own if not given; None if it was not measured."""
        return self.numbers.get((*key, self.outcome["arm"] if arm is None else arm))


def read_jobs(*folders: Path) -> list[Job]:
    """Return the jobs in some folders, by their overrides.

    Args:
        folders: of a sweep, of one run or job, or of several of them (runs/docstrings).
    """
    paths = dict.fromkeys(path for folder in folders for path in _job_folders(folder))
    found = [_read(path) for path in paths if "overrides" in _outcome(path)]
    found = _without_repeats(found)
    words = _told_apart([job.folder for job in found], [job.overrides for job in found])
    common = {key for one in words for key in one if len({w.get(key) for w in words}) == 1}
    jobs = []
    for job, own in zip(found, words, strict=True):
        varying = {key: value for key, value in own.items() if key not in common or len(words) == 1}
        jobs.append(job._replace(overrides=varying))
    return sorted(jobs, key=lambda job: [sortable(value) for value in job.overrides.values()])


def common_words(jobs: Sequence[Job]) -> list[str]:
    """Return the verb and overrides that all of several jobs have."""
    words = [{f"{k}={v}" for k, v in _read(job.folder).overrides.items()} for job in jobs]
    return sorted(set.intersection(*words)) if len(jobs) > 1 else []


def sortable(value: str) -> tuple[float, str]:
    """Return what sorts numbers by their size and before all other texts."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _job_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders at and below this one that a job or a measuring run left."""
    if (folder / FILE).exists() or (folder / ".hydra").is_dir():
        if (folder / FILE).exists() or (folder / "metrics.json").exists():
            yield folder
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _job_folders(Path(entry.path))


def _outcome(folder: Path) -> dict[str, Any]:
    """Return a job's outcome, of a run that is no sweep's what Hydra noted of it."""
    if (folder / FILE).exists():
        return read(folder)
    known = {
        name: yaml.safe_load((folder / ".hydra" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("config", "overrides")
    }
    return {
        "status": "finished",
        "verb": known["config"]["verb"],
        "overrides": [word for word in known["overrides"] if not word.startswith("verb=")],
        "arm": known["config"].get("arm"),
        "seconds": None,
        "error": None,
        "host": None,
        "job": None,
    }


def _told_apart(paths: Sequence[Path], words: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Add the folder to the overrides where the same ones came from several folders.

    They are not seeds of one setting: something else differs, which no override says.
    """
    counts = collections.Counter(tuple(sorted(one.items())) for one in words)
    if all(count == 1 for count in counts.values()):
        return list(words)
    names = [path.parent if (path / FILE).exists() else path for path in paths]
    short = len({name.name for name in names}) == len(set(names))
    names = [name.resolve() for name in names]  # some may be given relative, others not
    shared = Path(os.path.commonpath(names))
    return [
        {FOLDER: name.name if short else str(name.relative_to(shared)), **one}
        for name, one in zip(names, words, strict=True)
    ]


def _read(folder: Path) -> Job:
    """Return a job with all of its overrides, as its composed config spells their values.

    Its seed is among them, given or not; where it logged is not: that is no setting.
    """
    outcome, path = _outcome(folder), folder / ".hydra" / "config.yaml"
    words = (word.partition("=") for word in outcome["overrides"])
    given = {key: value for key, _, value in words if key.split(".")[0] not in ELSEWHERE}
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    spelt = {"verb": outcome["verb"]}
    if "seed" in config:
        spelt["seed"] = str(config["seed"])
    for key, value in given.items():
        composed: Any = config
        for part in key.lstrip("+").split("."):
            composed = composed.get(part) if isinstance(composed, dict) else None
        is_scalar = isinstance(composed, bool | int | float)
        spelt[key] = str(composed) if is_scalar else value
    measured_on = repr([config.get(name) for name in MEASURED_ON])
    return Job(folder, outcome, spelt, _numbers(metrics(folder)), measured_on)


def _without_repeats(jobs: Sequence[Job]) -> list[Job]:
    """Leave out jobs that are another one again: the same overrides, and the same numbers."""
    kept: dict[Any, Job] = {}
    for job in jobs:
        same = tuple(sorted(job.overrides.items())), tuple(sorted(job.numbers.items()))
        kept.setdefault(same if job.numbers else job.folder, job)
    return list(kept.values())


def _numbers(rows: Sequence[Metric]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for row in rows:
        value = number(row)
        of_two = row["name"].endswith(("_difference", "_ratio"))
        if of_two and row.get("reference", REFERENCE) != REFERENCE:
            continue
        if row["band"] == "all" and row["sae"] is not None and value is not None:
            found[row["name"], row["split"], row["sae"]] = value
    return found
