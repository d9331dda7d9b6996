"""A sweep at a glance: how its jobs ended, what they measured, and which settings are worth having.

summary.csv    one row per job
summary.html   one row per setting (jobs that differ in their seed only), Pareto plots, errors
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.text import Text
from scipy import stats

from ssae.artifact.replace import write_text
from ssae.report.page import page_environment
from ssae.report.table import HEADLINE, Column, spell
from ssae.report.terminal import SHORT, bare_table
from ssae.sweep.figure import pareto_figure
from ssae.sweep.outcome import FILE, metric, metrics, read

COLUMNS = (*HEADLINE, Column("fvu", "train", "fvu", -1), Column("l0", "train", "l0", 0))
"""What a sweep of run or evaluate measures; then a sweep of train, in the batch logged last."""
TITLES = SHORT | {"train": "train"}
PLOTS = (  # x and y; of both less is better
    (("l0", "subdomain_test"), ("perplexity_spliced", "subdomain_test")),
    (("perplexity_spliced", "general_test"), ("perplexity_spliced", "subdomain_test")),
    (("l0", "train"), ("fvu", "train")),
)


class Job(NamedTuple):
    """One job of a sweep."""

    folder: Path
    outcome: dict[str, Any]
    overrides: dict[str, str]
    """Its verb and overrides, those that not all jobs have in common."""
    values: dict[tuple[str, str], float | None]
    """The headline metrics of the job's arm, by (metric, split)."""

    @property
    def finished(self) -> bool:
        """Whether it did its work."""
        return self.outcome["status"] == "finished"

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """The overrides but the seed, by which jobs are averaged."""
        return tuple((k, v) for k, v in self.overrides.items() if k != "seed")


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


def summarise(folder: Path, num_jobs: int = 0, console: Console | None = None) -> None:
    """Write summary.csv and summary.html of a sweep and print what matters of them.

    Args:
        folder: of the sweep; a job is a folder in it that has an outcome.json.
        num_jobs: that there are to be, those included that have not begun.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    jobs = read_jobs(folder)
    if not jobs:
        return
    columns = measured_columns(jobs)
    _write_csv(folder / "summary.csv", jobs, columns)
    settings = settings_of([job for job in jobs if job.finished])
    total = max(num_jobs, len(jobs))
    _write_page(folder / "summary.html", settings, jobs, columns, total)
    if columns:
        table = bare_table("setting")
        for column in columns:
            title = column.title.replace(" ", "\n")
            table.add_column(f"{TITLES[column.split]}\n{title}", justify="right")
        for setting in settings:
            cells = (_spell_mean(setting, column) for column in columns)
            # An override each line: a terminal is not wide enough for two.
            table.add_row(Text(setting.name.replace(" ", "\n") or "(all jobs)"), *cells)
        console.print(table)
    for job in jobs:
        if not job.finished:
            line = Text(f"{job.outcome['status']}: {_words(job)}: {_reason(job)}")
            console.print(line, soft_wrap=True)
    count = f"{sum(job.finished for job in jobs)} of {total} jobs finished"
    console.print(f"{count}; summary: {folder / 'summary.html'}", soft_wrap=True)


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep's folder, by their overrides."""
    found = [(path.parent, read(path.parent)) for path in sorted(folder.glob(f"*/{FILE}"))]
    found = [(path, outcome) for path, outcome in found if "overrides" in outcome]
    words = [_overrides(outcome) for _, outcome in found]
    common = {key for one in words for key in one if len({w.get(key) for w in words}) == 1}
    jobs = []
    for (path, outcome), own in zip(found, words, strict=True):
        varying = {key: value for key, value in own.items() if key not in common or len(words) == 1}
        rows, arm = metrics(path), outcome["arm"]
        values = {(c.name, c.split): metric(rows, f"{c.split}/{c.name}/{arm}") for c in COLUMNS}
        jobs.append(Job(path, outcome, varying, values))
    return sorted(jobs, key=lambda job: [_sortable(value) for value in job.overrides.values()])


def measured_columns(jobs: Sequence[Job]) -> list[Column]:
    """Return the columns that any of the jobs has a number in."""
    return [c for c in COLUMNS if any(job.values[c.name, c.split] is not None for job in jobs)]


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """Return the jobs by setting, in the order of their first jobs."""
    settings: dict[tuple[tuple[str, str], ...], list[Job]] = {}
    for job in jobs:
        settings.setdefault(job.setting, []).append(job)
    short = [_name(setting, short=True) for setting in settings]
    return [
        Setting(name if short.count(name) == 1 else _name(setting, short=False), members)
        for name, (setting, members) in zip(short, settings.items(), strict=True)
    ]


def _overrides(outcome: dict[str, Any]) -> dict[str, str]:
    words = (word.partition("=") for word in outcome["overrides"])
    return {"verb": outcome["verb"], **{key: value for key, _, value in words}}


def _name(setting: tuple[tuple[str, str], ...], *, short: bool) -> str:
    """Return a setting as it is read: "tilt=5 lr=0.001", or in full."""
    if short:
        setting = tuple((key.rsplit(".", 1)[-1], _short(value)) for key, value in setting)
    return " ".join(f"{key}={value}" for key, value in setting)


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


def _write_csv(path: Path, jobs: Sequence[Job], columns: Sequence[Column]) -> None:
    names = list(dict.fromkeys(name for job in jobs for name in job.overrides))
    titles = [f"{column.split}/{column.name}" for column in columns]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "status", "seconds", *titles, "folder", "error"])
        for job in jobs:
            values = [job.values[column.name, column.split] for column in columns]
            numbers = ["" if value is None else value for value in values]
            outcome = job.outcome
            writer.writerow(
                [job.overrides.get(name, "") for name in names]
                + [outcome["status"], outcome["seconds"], *numbers, job.folder.name]
                + [outcome["error"] or ""]
            )


def _write_page(
    path: Path,
    settings: Sequence[Setting],
    jobs: Sequence[Job],
    columns: Sequence[Column],
    num_jobs: int,
) -> None:
    words = [{f"{k}={v}" for k, v in _overrides(job.outcome).items()} for job in jobs]
    common = sorted(set.intersection(*words)) if len(jobs) > 1 else []
    page = (
        page_environment()
        .get_template("sweep.html.jinja")
        .render(
            title=path.parent.name,
            columns=[f"{TITLES[column.split]} {column.title}" for column in columns],
            common=common,
            total=num_jobs,
            rows=[(s.name, len(s.jobs), [_spell_mean(s, c) for c in columns]) for s in settings],
            figures=[Markup(svg) for svg in _figures(settings)],
            finished=sum(job.finished for job in jobs),
            jobs=[(_words(j), j.outcome, j.folder.name, _reason(j)) for j in jobs],
        )
    )
    write_text(path, page)


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
            x_label=f"{TITLES[x[1]]} {x[0].removesuffix('_spliced')}",
            y_label=f"{TITLES[y[1]]} {y[0].removesuffix('_spliced')}",
        )
        if figure:
            yield figure
