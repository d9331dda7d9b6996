"""What `ssae polish` says in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ssae.report.table import Metric, spell
from ssae.report.terminal import bare_table

MEASURES = ("objective", "fvu", "l0")
MOMENTS = ("before", "after", "difference")


def print_polish(
    metrics: Sequence[Metric], manifest: Mapping[str, Any], console: Console | None = None
) -> None:
    """Print objective, fvu and l0 before and after the best round, and whether it was kept.

    Args:
        metrics: the rows of metrics.json.
        manifest: of the artifact.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    table = bare_table("held out")
    for title in (*MOMENTS, "95 % interval"):
        table.add_column(title, justify="right")
    by_name = {row["name"]: row for row in metrics}
    for measure in MEASURES:
        rows = [by_name[f"{measure}_{moment}"] for moment in MOMENTS]
        between = " .. ".join(_spell(rows[-1][end]) for end in ("low", "high"))
        table.add_row(measure, *(_spell(row["value"]) for row in rows), between)
    console.print(table)
    console.print(Text(verdict(manifest), style="italic"), end="\n\n")


def verdict(manifest: Mapping[str, Any]) -> str:
    """Return the sentences that say what became of the SAE, and what it has seen."""
    if not manifest["kept"]:
        return f"not kept: {manifest['why']}; what was written is the SAE as it was"
    said = (
        f"kept: the SAE after round {manifest['num_rounds']} of {len(manifest['rounds'])}; one "
        "half of the held-out documents chose it, the other, that of the table, confirms it"
    )
    if manifest["not_blind_on"] is not None:
        said += f". {manifest['not_blind_on']} is no blind test of this SAE any more"
    return said


def _spell(value: float | None) -> str:
    return "-" if value is None else spell(value)
