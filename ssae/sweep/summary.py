"""A sweep at a glance: how its jobs ended, what they measured, and which settings are worth having.

summary.csv    one row per job
arms.csv       one row per job and arm, with everything that was measured over all bands
summary.html   one row per setting (jobs that differ in their seed only), Pareto curves and plots
"""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from ssae.artifact.replace import write_text
from ssae.report.marks import styles
from ssae.report.page import page_environment
from ssae.report.table import HEADLINE, SAES, SPLITS, Column, ordered, spell
from ssae.report.terminal import SHORT, tables_by_split
from ssae.sweep.curves import REFERENCE, curves, sparsity_key
from ssae.sweep.figure import curve_figure, pareto_figure
from ssae.sweep.jobs import Job, Key, Setting, common_words, read_jobs, settings_of

COLUMNS = (*HEADLINE, Column("fvu", "train", "fvu", -1), Column("l0", "train", "l0", 0))
"""What a sweep of run or evaluate measures; then a sweep of train, in the batch logged last."""
TITLES = SHORT | {"train": "train"}
PLOTS: tuple[tuple[Key, Key], ...] = (  # x and y; of both less is better
    (("l0", "subdomain_test"), ("perplexity_spliced", "subdomain_test")),
    (("perplexity_spliced", "general_test"), ("perplexity_spliced", "subdomain_test")),
    (("l0", "train"), ("fvu", "train")),
)
CURVES: tuple[tuple[Key, bool], ...] = (  # y, and whether it is relative to the generalist
    *((("perplexity_spliced", split), relative) for split in SPLITS for relative in (False, True)),
    (("tail_recall", "subdomain_test"), False),
)


def summarise(folder: Path, num_jobs: int = 0, console: Console | None = None) -> None:
    """Write the summary of a sweep into its folder and print what matters of it.

    Args:
        folder: of the sweep; a job is a folder in it that has an outcome.json.
        num_jobs: that there are to be, those included that have not begun.
        console: where to print; the terminal if not given.
    """
    jobs = read_jobs(folder)
    if jobs:
        write_summary(folder / "summary.html", jobs, folder.name, num_jobs)
        print_summary(folder / "summary.html", jobs, num_jobs, console or Console())


def write_summary(page: Path, jobs: Sequence[Job], title: str, num_jobs: int = 0) -> None:
    """Write the page of some jobs, and <page>.csv and arms.csv beside it."""
    columns = measured_columns(jobs)
    settings = settings_of([job for job in jobs if job.finished])
    _write_csv(page.with_suffix(".csv"), job_rows(jobs, columns))
    _write_csv(page.with_name("arms.csv"), arm_rows(jobs))
    folders = [Path(os.path.relpath(job.folder, page.parent)).as_posix() for job in jobs]
    text = (
        page_environment()
        .get_template("sweep.html.jinja")
        .render(
            title=title,
            columns=[f"{TITLES[column.split]} {column.title}" for column in columns],
            common=common_words(jobs),
            total=max(num_jobs, len(jobs)),
            rows=[(s.name, len(s.jobs), [_spell_mean(s, c) for c in columns]) for s in settings],
            reference=REFERENCE,
            swept=sorted({key for job in jobs if (key := sparsity_key(job.overrides))}),
            curves=[Markup(svg) for _, svg in curve_figures(jobs)],
            figures=[Markup(svg) for _, svg in setting_figures(settings)],
            finished=sum(job.finished for job in jobs),
            jobs=[
                (job.words, job.outcome, folder, _reason(job))
                for job, folder in zip(jobs, folders, strict=True)
            ],
        )
    )
    write_text(page, text)


def print_summary(page: Path, jobs: Sequence[Job], num_jobs: int, console: Console) -> None:
    """Print a line per setting, why jobs did not finish, and where the page lies."""
    columns = measured_columns(jobs)
    if columns:
        # An override each line: a terminal is not wide enough for two.
        rows = {
            setting.name.replace(" ", "\n") or "(all jobs)": [
                _spell_mean(setting, column) for column in columns
            ]
            for setting in settings_of([job for job in jobs if job.finished])
        }
        for table in tables_by_split(columns, rows):
            console.print(table)
            console.print()
    for job in jobs:
        if not job.finished:
            line = Text(f"{job.outcome['status']}: {job.words}: {_reason(job)}")
            console.print(line, soft_wrap=True)
    count = f"{sum(job.finished for job in jobs)} of {max(num_jobs, len(jobs))} jobs finished"
    console.print(f"{count}; summary: {page}", soft_wrap=True)


def measured_columns(jobs: Sequence[Job]) -> list[Column]:
    """Return the columns that any of the jobs has a number in."""
    keys = {column: (column.name, column.split) for column in COLUMNS}
    return [c for c, key in keys.items() if any(job.value(key) is not None for job in jobs)]


def job_rows(jobs: Sequence[Job], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return a row per job: its overrides, how it ended, the numbers of its arm."""
    return [
        {
            **_overrides(job, jobs),
            "status": job.outcome["status"],
            "seconds": job.outcome["seconds"],
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
        arms = ordered((arm for _, _, arm in job.numbers), SAES) if job.finished else []
        for own in arms:
            numbers = {f"{s}/{name}": v for (name, s, arm), v in job.numbers.items() if arm == own}
            rows.append({**_overrides(job, jobs), "arm": own, **numbers, "folder": str(job.folder)})
    return rows


def curve_figures(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """Yield the title and the drawing of every Pareto curve that was measured."""
    finished = [job for job in jobs if job.finished]
    for (name, split), relative in CURVES:
        drawn = curves(finished, (name, split), relative=relative)
        spelt = name.removesuffix("_spliced").replace("_", " ")
        of = f" / {REFERENCE}'s" if relative else ""
        title = f"{TITLES[split]} {spelt}{of} against l0"
        svg = curve_figure(
            drawn, styles=styles(ordered((curve.arm for curve in drawn), SAES)),
            key=f"curve-{name}-{split}-{relative}", title=title,
            x_label=f"l0 on {split} (active latents per token)", y_label=f"{spelt}{of}",
            reference=1.0 if relative else None,
        )  # fmt: skip
        if svg:
            yield title, svg


def setting_figures(settings: Sequence[Setting]) -> Iterator[tuple[str, str]]:
    """Yield the title and the drawing of every plot of settings with their Pareto front."""
    for x, y in PLOTS:
        points: dict[str, list[tuple[float, float]]] = {}
        for setting in settings:
            for job in setting.jobs:
                at_x, at_y = job.value(x), job.value(y)
                if at_x is not None and at_y is not None:
                    points.setdefault(setting.name, []).append((at_x, at_y))
        labels = [f"{TITLES[split]} {name.removesuffix('_spliced')}" for name, split in (x, y)]
        svg = pareto_figure(points, x_label=labels[0], y_label=labels[1])
        if svg:
            yield f"settings: {labels[1]} against {labels[0]}", svg


def _overrides(job: Job, jobs: Sequence[Job]) -> dict[str, str]:
    return {name: job.overrides.get(name, "") for other in jobs for name in other.overrides}


def _reason(job: Job) -> str:
    if job.outcome["status"] != "running":
        return job.outcome["error"] or ""
    number = job.outcome["job"]
    log = job.folder.parent / ".submitit" / (number or "-")
    where = f"job {number} on " if number else ""
    logged = f"; its log: {log}" if log.exists() else ""
    return f"runs, or was killed ({where}{job.outcome['host']}){logged}; the same command continues"


def _spell_mean(setting: Setting, column: Column) -> str:
    mean, half = setting.mean((column.name, column.split))
    if mean is None:
        return "-"
    return spell(mean) if half is None else f"{spell(mean)} ±{half:.2g}"


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)  # None is written as nothing
