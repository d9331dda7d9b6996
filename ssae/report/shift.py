"""`shift.html`, `table.md` and the terminal's table: what `ssae shift` found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from ssae.artifact.replace import write_text
from ssae.probe.scores import is_tie
from ssae.report import shift_figures
from ssae.report.page import page_environment
from ssae.report.shift_table import (
    COLUMNS,
    as_markdown,
    headings,
    percent,
    table_rows,
    title,
)
from ssae.report.table import Metric, find, spell
from ssae.report.terminal import bare_table

FEW_SEEDS = 5


def write_shift_report(
    folder: Path,
    *,
    name: str,
    label: str,
    spurious: str,
    summary: Mapping[str, str],
    metrics: Sequence[Metric],
    config: str,
) -> Path:
    """Write shift.html and table.md; return the page.

    Args:
        folder: that exists.
        name: of the study.
        label: what the probe learns.
        spurious: what it should not use.
        summary: what was studied, name to text.
        metrics: the rows of metrics.json.
        config: the composed config.
    """
    rows = table_rows(metrics)
    environment = page_environment()
    environment.filters |= {"spell": spell, "percent": percent}
    page = environment.get_template("shift.html.jinja").render(
        title=f"{name}: {spurious} out of {label}",
        label=label,
        spurious=spurious,
        summary=summary,
        verdict=sentences(metrics, label, spurious),
        headings=headings(label, spurious),
        rows=rows,
        groups=list(rows[0].groups) if rows else [],
        by_method=Markup(shift_figures.worst_group_by_method(rows, spurious)),
        by_latents=Markup(shift_figures.worst_group_by_latents(metrics, spurious)),
        config=config,
    )
    write_text(folder / "shift.html", page)
    write_text(folder / "table.md", as_markdown(rows, label, spurious))
    return folder / "shift.html"


def sentences(metrics: Sequence[Metric], label: str, spurious: str) -> list[str]:
    """Return what the numbers say; a difference whose interval holds 0 is a tie."""
    found = []
    original = find(metrics, "worst_group_accuracy", method="original")
    if original is None:
        return ["Nothing was measured."]
    found.append(
        f"The biased probe is right about {percent(original)} % of its worst group, about "
        f"{percent(find(metrics, 'label_accuracy', method='original'))} % on balanced data."
    )
    num_seeds = len(original["by_seed"])
    if num_seeds < FEW_SEEDS:
        found.append(
            f"Only {num_seeds} of the {FEW_SEEDS} seeds that a comparison of SAEs wants: intervals "
            "are of documents more than of SAEs, and too narrow."
        )
    for metric in metrics:
        is_shift = metric.get("method") == "shift" and metric["name"] == "worst_group_accuracy"
        is_row = is_shift and metric["most"] is None and not metric["retrained"]
        if is_row and not metric["num_ablated"]:
            row = title("shift", metric["arm"], metric["width"], False)
            found.append(
                f"{row}: no latent is ablated, none of the candidates tells {spurious}; lower "
                "shift.min_selectivity, or judge candidates.yaml yourself."
            )
    gains = [m for m in metrics if m["name"] == "worst_group_accuracy_gain" and m["most"] is None]
    for gain in gains:
        if gain["reference"] == "original":
            continue
        where = {key: gain[key] for key in ("method", "width", "retrained")}
        pair = [
            find(metrics, "worst_group_accuracy", arm=arm, most=None, **where)
            for arm in (gain["arm"], gain["reference"])
        ]
        row = title(gain["method"], None, gain["width"], gain["retrained"])
        found.append(
            f"{row}: worst group {percent(pair[0])} % with the {gain['arm']}, {percent(pair[1])} % "
            f"with the {gain['reference']}: {_points(gain)}."
        )
    for gain in metrics:
        if gain["name"] != "label_accuracy_gain" or gain["reference"] != "original":
            continue
        if not gain["retrained"] and gain["width"] == 1:
            found.append(
                f"SHIFT with the {gain['arm']} changes {label} accuracy on balanced data by "
                f"{_points(gain)}."
            )
    return found


def _points(gain: Metric) -> str:
    numbers = [100 * gain[key] for key in ("value", "low", "high")]
    text = "{:+.1f} points ({:+.1f} to {:+.1f})".format(*numbers)
    return f"{text}, a tie" if is_tie(numbers) else text


def print_shift(metrics: Sequence[Metric], label: str, spurious: str) -> None:
    """Print the table."""
    console = Console()
    table = bare_table("accuracy in %")
    for name in headings(label, spurious).values():
        table.add_column(Text(name.replace(" ", "\n")), justify="right")
    table.add_column("latents", justify="right")
    for row in table_rows(metrics):
        cells = [percent(row.numbers.get(name), with_interval=False) for name in COLUMNS]
        star = " *" if row.needs_labels else ""
        number = "" if row.num_ablated is None else f"{row.num_ablated:.1f}"
        table.add_row(Text(row.title + star), *cells, number)
    console.print(table)
    console.print(Text(f"* is given {spurious}, or balanced data, in training", style="italic"))
    for sentence in sentences(metrics, label, spurious):
        console.print(Text(sentence))
