"""A sweep at a glance: how its jobs ended, what they measured, and which settings are worth having.

summary.csv    one row per job
arms.csv       one row per job and arm, with everything that was measured over all bands
summary.html   one row per setting (jobs that differ in their seed only) and one per arm of each,
               Pareto curves and plots

Numbers are of the arm that a job is for (arm=) where no other is named; what compares two SAEs
compares with the generalist.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from ssae.artifact.replace import write_text
from ssae.report.marks import styles
from ssae.report.page import page_environment
from ssae.report.table import SAES, SPLITS, ordered
from ssae.report.terminal import SHORT, tables_by_split
from ssae.sweep.curves import curves, sparsity_key
from ssae.sweep.figure import curve_figure, pareto_figure
from ssae.sweep.jobs import REFERENCE, Job, Key, common_words, read_jobs
from ssae.sweep.rows import arm_means, arm_rows, job_rows, mean_cells, measured_columns, write_csv
from ssae.sweep.setting import Setting, settings_of

TITLES = SHORT | {"train": "train", "labelled": ""}
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
    write_csv(page.with_suffix(".csv"), job_rows(jobs, columns))
    write_csv(page.with_name("arms.csv"), arm_rows(jobs))
    folders = [Path(os.path.relpath(job.folder, page.parent)).as_posix() for job in jobs]
    text = (
        page_environment()
        .get_template("sweep.html.jinja")
        .render(
            title=title,
            columns=[f"{TITLES[column.split]} {column.title}".strip() for column in columns],
            common=common_words(jobs),
            total=max(num_jobs, len(jobs)),
            rows=[(s.name, len(s.jobs), mean_cells(s, columns)) for s in settings],
            own_arms=_own_arms(jobs),
            arms=list(arm_means(settings, columns)),
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
    """Print a line per setting, why jobs did not finish, and where the page lies.

    Of one setting alone, a line per arm.
    """
    columns = measured_columns(jobs)
    if columns:
        settings = settings_of([job for job in jobs if job.finished])
        if len(settings) > 1:
            # An override each line: a terminal is not wide enough for two.
            rows = {s.name.replace(" ", "\n"): mean_cells(s, columns) for s in settings}
            console.print(f"arm {_own_arms(jobs)}; those of all arms are in the summary")
        else:
            rows = {arm: cells for _, arm, _, cells in arm_means(settings, columns)}
        for table in tables_by_split(columns, rows):
            console.print(table)
            console.print()
    for job in jobs:
        if not job.finished:
            line = Text(f"{job.outcome['status']}: {job.words}: {_reason(job)}")
            console.print(line, soft_wrap=True)
    count = f"{sum(job.finished for job in jobs)} of {max(num_jobs, len(jobs))} jobs finished"
    console.print(f"{count}; summary: {page}", soft_wrap=True)


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
    """Yield the title and the drawing of every plot of settings with their Pareto front.

    There is none of jobs on different text or language models.
    """
    if len({job.measured_on for setting in settings for job in setting.jobs}) > 1:
        return
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


def _reason(job: Job) -> str:
    if job.outcome["status"] != "running":
        return job.outcome["error"] or ""
    number = job.outcome["job"]
    log = job.folder.parent / ".submitit" / (number or "-")
    where = f"job {number} on " if number else ""
    logged = f"; its log: {log}" if log.exists() else ""
    return f"runs, or was killed ({where}{job.outcome['host']}){logged}; the same command continues"


def _own_arms(jobs: Sequence[Job]) -> str:
    """Return the names of the arms that jobs are for."""
    return ", ".join(dict.fromkeys(job.outcome["arm"] or "-" for job in jobs))
