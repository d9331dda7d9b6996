"""The table of `ssae shift`: which rows, in which order, and what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssae.report.excerpt import one_line
from ssae.report.table import Metric

ORDER = (
    "original", "concept_bottleneck", "neuron_skyline", "feature_skyline", "shift", "oracle",
)  # fmt: skip
CONTROLS = ("random", "words_deleted", "embedding_projection", "mean_difference", "leace")
TITLES = {
    "original": "biased probe",
    "concept_bottleneck": "concept bottleneck probe",
    "neuron_skyline": "neuron skyline",
    "feature_skyline": "feature skyline",
    "shift": "SHIFT",
    "oracle": "oracle: a probe trained on balanced data",
    "random": "random latents, as many",
    "words_deleted": "words deleted from the text",
    "embedding_projection": "words projected out of the embedding",
    "mean_difference": "mean difference projected out",
    "leace": "LEACE",
}
LABELS = ("neuron_skyline", "feature_skyline", "oracle", "leace")
"""Methods that are given the spurious attribute, or balanced data, of the training set."""
COLUMNS = ("label_accuracy", "spurious_accuracy", "worst_group_accuracy", "ambiguous_accuracy")


class Row(NamedTuple):
    """A row of the table."""

    title: str
    needs_labels: bool
    is_control: bool
    numbers: dict[str, Metric]
    """{column: row of metrics.json}."""
    groups: dict[str, Metric]
    """{group: row of metrics.json}."""
    num_ablated: float | None


def table_rows(metrics: Sequence[Metric]) -> list[Row]:
    """Return the rows in the table's order."""
    found: dict[tuple, dict[str, Any]] = {}
    for metric in metrics:
        if metric.get("most") is not None or "reference" in metric or "method" not in metric:
            continue
        key = (metric["method"], metric["arm"], metric["width"], metric["retrained"])
        kept = found.setdefault(key, {"numbers": {}, "groups": {}})
        if metric["band"] == "all":
            kept["numbers"][metric["name"]] = metric
        else:
            kept["groups"][metric["band"]] = metric
    arms = list(dict.fromkeys(key[1] for key in found if key[1] is not None))
    rows = []
    for key in sorted(found, key=lambda key: _place(key, arms)):
        method, arm, width, retrained = key
        first = next(iter(found[key]["numbers"].values()))
        rows.append(
            Row(
                title(method, arm, width, retrained),
                method in LABELS,
                method in CONTROLS,
                found[key]["numbers"],
                found[key]["groups"],
                first["num_ablated"],
            )
        )
    return rows


def title(method: str, arm: str | None, width: float | None, retrained: bool) -> str:
    """Return what a row is called.

    >>> title("shift", "specialist", 0.125, True)
    'SHIFT + retrain, specialist, 1/8 width'
    """
    name = TITLES.get(method, method) + (" + retrain" if retrained else "")
    parts = [
        name,
        *([arm] if arm else []),
        *([spell_width(width)] if width not in (None, 1) else []),
    ]
    return ", ".join(parts)


def spell_width(width: float | None) -> str:
    """Return a share as a fraction, where it is one of a whole number."""
    inverse = 1 / width if width else 0
    return (
        f"1/{round(inverse)} width" if abs(inverse - round(inverse)) < 1e-9 else f"{width:g} width"
    )


def _place(key: tuple, arms: Sequence[str]) -> tuple:
    method, arm, width, retrained = key
    names = (*ORDER, *CONTROLS)
    place = names.index(method) if method in names else len(names)
    return place, -(width or 0), retrained, arms.index(arm) if arm in arms else -1


def percent(metric: Mapping[str, Any] | None, *, with_interval: bool = True) -> str:
    """Return an accuracy in per cent, with its 95 % interval.

    >>> percent({"value": 0.885, "low": 0.85, "high": 0.9123})
    '88.5 (85.0 - 91.2)'
    """
    if metric is None or metric["value"] is None:
        return "-"
    text = f"{100 * metric['value']:.1f}"
    if with_interval and metric["low"] is not None:
        text += f" ({100 * metric['low']:.1f} - {100 * metric['high']:.1f})"
    return text


def headings(label: str, spurious: str) -> dict[str, str]:
    """Return the columns' names."""
    return dict(zip(COLUMNS, (label, spurious, "worst group", f"{label}, ambiguous"), strict=True))


def as_markdown(rows: Sequence[Row], label: str, spurious: str) -> str:
    """Return the table as markdown."""
    names = {key: _cell(name) for key, name in headings(label, spurious).items()}
    lines = [
        "| method | " + " | ".join(names.values()) + " | latents |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        cells = [percent(row.numbers.get(name)) for name in names]
        star = " *" if row.needs_labels else ""
        number = "" if row.num_ablated is None else f"{row.num_ablated:.1f}"
        lines.append(f"| {_cell(row.title)}{star} | " + " | ".join(cells) + f" | {number} |")
    lines.append("")
    lines.append(f"\\* is given {_cell(spurious)}, or balanced data, in training.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return a text that stays in its cell."""
    return one_line(text, 200).replace("|", "\\|")
