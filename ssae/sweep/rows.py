"""The tables of a sweep: a row per job, per job and arm, and means over seeds."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssae.report.table import HEADLINE, SAES, Column, ordered, spell
from ssae.sweep.jobs import Job
from ssae.sweep.setting import Setting

COLUMNS = (
    *HEADLINE,
    Column("fvu", "train", "fvu", -1),
    Column("l0", "train", "l0", 0),
    Column("label_accuracy", "labelled", "label accuracy", 1),
    Column("spurious_accuracy", "labelled", "spurious accuracy", 0),
    Column("worst_group_accuracy", "labelled", "worst group", 1),
    Column("tangent_excess_median", "subdomain_test", "excess tangent", -1),
    Column("tangent_excess_rarity_correlation", "subdomain_test", "with rarity", 0),
    Column("tangent_excess_tail_difference", "subdomain_test", "tail latents", 0),
    Column("tangent_excess_median", "general_test", "excess tangent", -1),
)
"""What a sweep of run or evaluate measures; of train, in the batch logged last; of shift; of
diagnose."""


def measured_columns(jobs: Sequence[Job]) -> list[Column]:
    """Return the columns that any arm of the jobs has a number in."""
    keys = {(name, split) for job in jobs for name, split, _ in job.numbers}
    return [column for column in COLUMNS if (column.name, column.split) in keys]


def job_rows(jobs: Sequence[Job], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return a row per job: its overrides, how it ended, the numbers of its arm."""
    return [
        {
            **_overrides(job, jobs),
            "status": job.outcome["status"],
            "seconds": job.outcome["seconds"],
            "arm": job.outcome["arm"],
            **{f"{c.split}/{c.name}": job.value((c.name, c.split)) for c in columns},
            "folder": job.folder.name,
            "error": job.outcome["error"],
        }
        for job in jobs
    ]


def arm_rows(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return a row per finished job and arm: overrides, seed, arm, <split>/<metric>..., folder."""
    rows = []
    for job in jobs:
        for own in arms_of([job]) if job.finished else []:
            numbers = {f"{s}/{name}": v for (name, s, arm), v in job.numbers.items() if arm == own}
            rows.append({**_overrides(job, jobs), "arm": own, **numbers, "folder": str(job.folder)})
    return rows


def arms_of(jobs: Sequence[Job]) -> list[str]:
    """Return the arms that jobs measured, the usual ones first."""
    return ordered((arm for job in jobs for _, _, arm in job.numbers), SAES)


def mean_cells(setting: Setting, columns: Sequence[Column], arm: str | None = None) -> list[str]:
    """Return an arm's means over the seeds, the job's own if not given, as they are read."""
    return [_spell_mean(setting, column, arm) for column in columns]


def arm_means(
    settings: Sequence[Setting], columns: Sequence[Column]
) -> Iterator[tuple[str, str, int, list[str]]]:
    """Yield (setting, arm, number of seeds, means over them) of every arm of every setting."""
    for setting in settings:
        for arm in arms_of(setting.jobs):
            num_seeds = sum(any(arm == own for _, _, own in job.numbers) for job in setting.jobs)
            yield setting.name, arm, num_seeds, mean_cells(setting, columns, arm)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the columns that any of them has; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _overrides(job: Job, jobs: Sequence[Job]) -> dict[str, str]:
    return {name: job.overrides.get(name, "") for other in jobs for name in other.overrides}


def _spell_mean(setting: Setting, column: Column, arm: str | None) -> str:
    mean, half = setting.mean((column.name, column.split), arm)
    if mean is None:
        return "-"
    return spell(mean) if half is None else f"{spell(mean)} ±{half:.2g}"
