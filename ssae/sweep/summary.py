"""A sweep at a glance: how its jobs ended, what they measured, and which settings are worth having.

summary.csv    one row per job
summary.html   one row per setting (jobs that differ in their seed only), Pareto plots, errors
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.text import Text
from scipy import stats

from ssae.report.page import page_environment, write_page
from ssae.report.table import HEADLINE, Column, spell
from ssae.report.terminal import SHORT, bare_table
from ssae.sweep.figure import pareto_figure
from ssae.sweep.outcome import FILE, measured, read

log = logging.getLogger(__name__)

PLOTS = (  # x and y; of both less is better
    (("l0", "subdomain_test"), ("perplexity_spliced", "subdomain_test")),
    (("perplexity_spliced", "general_test"), ("perplexity_spliced", "subdomain_test")),
)


class Job(NamedTuple):
    """One job of a sweep."""

    folder: Path
    outcome: dict[str, Any]
    overrides: dict[str, str]
    """Those that not all jobs have in common."""
    values: dict[tuple[str, str], float | None]
    """The headline metrics of the job's arm, by (metric, split)."""

    @property
    def setting(self) -> str:
        """The overrides but the seed, by which jobs are averaged."""
        return " ".join(f"{k}={v}" for k, v in self.overrides.items() if k != "seed")

    @property
    def short_setting(self) -> str:
        """The same, its numbers as they are read."""
        words = (f"{k}={_short(v)}" for k, v in self.overrides.items() if k != "seed")
        return " ".join(words)


class Setting(NamedTuple):
    """The jobs that differ in their seed only."""

    name: str
    jobs: list[Job]

    def mean(self, key: tuple[str, str]) -> tuple[float | None, float | None]:
        """Return a metric's mean over the seeds and half of its 95 % interval (Student's t)."""
        values = [job.values[key] for job in self.jobs]
        numbers = np.array([value for value in values if value is not None])
        if len(numbers) == 0:
            return None, None
        if len(numbers) == 1:
            return float(numbers[0]), None
        error = numbers.std(ddof=1) / np.sqrt(len(numbers))
        return float(numbers.mean()), float(stats.t.ppf(0.975, len(numbers) - 1) * error)


def summarise(folder: Path, console: Console | None = None) -> None:
    """Write summary.csv and summary.html of a sweep and print what matters of them.

    Args:
        folder: of the sweep; a job is a folder in it that has an outcome.json.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    jobs = read_jobs(folder)
    if not jobs:
        return
    _write_csv(folder / "summary.csv", jobs)
    settings = settings_of(jobs)
    _write_page(folder / "summary.html", settings, jobs)
    table = bare_table("setting")
    for column in HEADLINE:
        title = column.title.replace(" ", "\n")
        table.add_column(f"{SHORT[column.split]}\n{title}", justify="right")
    done = [s for s in settings if any(j.outcome["status"] == "finished" for j in s.jobs)]
    for setting in done:
        cells = (_spell_mean(setting, column) for column in HEADLINE)
        table.add_row(Text(setting.name or "(all jobs)"), *cells)
    if any(value is not None for job in jobs for value in job.values.values()):
        console.print(table)
    unfinished = [job for job in jobs if job.outcome["status"] != "finished"]
    for job in unfinished:
        console.print(Text(f"{job.outcome['status']}: {_words(job)}: {_reason(job)}"))
    count = f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs finished"
    console.print(f"{count}; summary: {folder / 'summary.html'}", soft_wrap=True)


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep's folder, by their overrides."""
    found = [(path.parent, read(path.parent)) for path in sorted(folder.glob(f"*/{FILE}"))]
    outcomes = [(path, outcome) for path, outcome in found if "overrides" in outcome]
    split = [dict(word.split("=", 1) for word in outcome["overrides"]) for _, outcome in outcomes]
    common = {key for key in split[0] if len({s.get(key) for s in split}) == 1} if split else set()
    if len(split) == 1:
        common = set()
    jobs = []
    for (path, outcome), overrides in zip(outcomes, split, strict=True):
        varying = {key: value for key, value in overrides.items() if key not in common}
        values = {
            (column.name, column.split): measured(
                path, f"{column.split}/{column.name}/{outcome['arm']}"
            )
            for column in HEADLINE
        }
        jobs.append(Job(path, outcome, varying, values))
    return sorted(jobs, key=lambda job: [_sortable(value) for value in job.overrides.values()])


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """Return the jobs by setting, in the order of their first jobs."""
    settings: dict[str, list[Job]] = {}
    for job in jobs:
        settings.setdefault(job.setting, []).append(job)
    short = [members[0].short_setting for members in settings.values()]
    return [
        Setting(name if short.count(name) == 1 else full, members)
        for name, (full, members) in zip(short, settings.items(), strict=True)
    ]


def _short(value: str) -> str:
    if len(value) <= 8:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _words(job: Job) -> str:
    return " ".join(f"{k}={v}" for k, v in job.overrides.items()) or job.folder.name


def _reason(job: Job) -> str:
    if job.outcome["status"] != "running":
        return job.outcome["error"] or ""
    where = f"job {job.outcome['job']} on " if job.outcome["job"] else ""
    return f"runs, or was killed ({where}{job.outcome['host']}); the same command continues it"


def _spell_mean(setting: Setting, column: Column) -> str:
    mean, half = setting.mean((column.name, column.split))
    if mean is None:
        return "-"
    return spell(mean) if half is None else f"{spell(mean)} ±{half:.2g}"


def _write_csv(path: Path, jobs: Sequence[Job]) -> None:
    names = list(dict.fromkeys(name for job in jobs for name in job.overrides))
    columns = [f"{column.split}/{column.name}" for column in HEADLINE]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "status", "seconds", *columns, "folder", "error"])
        for job in jobs:
            numbers = ["" if value is None else value for value in job.values.values()]
            outcome = job.outcome
            writer.writerow(
                [job.overrides.get(name, "") for name in names]
                + [outcome["status"], outcome["seconds"], *numbers, job.folder.name]
                + [outcome["error"] or ""]
            )


def _write_page(path: Path, settings: Sequence[Setting], jobs: Sequence[Job]) -> None:
    page = (
        page_environment()
        .get_template("sweep.html.jinja")
        .render(
            title=path.parent.name,
            columns=[f"{SHORT[column.split]} {column.title}" for column in HEADLINE],
            rows=[(s.name, len(s.jobs), [_spell_mean(s, c) for c in HEADLINE]) for s in settings],
            figures=[Markup(svg) for svg in _figures(settings)],
            finished=sum(job.outcome["status"] == "finished" for job in jobs),
            jobs=[(_words(j), j.outcome, j.folder.name, _reason(j)) for j in jobs],
        )
    )
    write_page(path, page)


def _figures(settings: Sequence[Setting]) -> Iterator[str]:
    for x, y in PLOTS:
        points: dict[str, list[tuple[float, float]]] = {}
        for setting in settings:
            for job in setting.jobs:
                at_x, at_y = job.values[x], job.values[y]
                if at_x is not None and at_y is not None:
                    points.setdefault(setting.name, []).append((at_x, at_y))
        figure = pareto_figure(
            points,
            x_label=f"{SHORT[x[1]]} {x[0].removesuffix('_spliced')}",
            y_label=f"{SHORT[y[1]]} {y[0].removesuffix('_spliced')}",
        )
        if figure:
            yield figure
