"""The headline numbers in the terminal, the same as in `report.html`."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssae.report.table import (
    HEADLINE,
    RETRIEVAL,
    RETRIEVERS,
    SAES,
    SPLITS,
    Column,
    Metric,
    best,
    find,
    number,
    ordered,
    spell,
)

LONGEST_NAME = 16
"""That is not broken: in 80 columns it comes before the last digits of numbers."""
SHORT = {"subdomain_test": "subdomain", "general_test": "general"}


def print_table(metrics: Sequence[Metric], console: Console | None = None) -> None:
    """Print a table per split with a row per SAE and, where it was measured, one of the retrievers.

    The best value of a column is bold; l0 has none, since it is a budget and not a score.

    Args:
        metrics: the rows of metrics.json.
        console: where to print; the terminal if not given.
    """
    console = console or Console()
    names = ordered((row.get("sae") for row in metrics), SAES)
    columns = []
    for column in HEADLINE:
        found = {s: number(find(metrics, column.name, sae=s, split=column.split)) for s in names}
        columns.append(_cells(found, column.better))
    if names:
        for table in tables_by_split(HEADLINE, {n: [cells[n] for cells in columns] for n in names}):
            console.print(table)
            console.print()
        console.print(Text(_floors(metrics), style="italic"), end="\n\n")
    retrievers = ordered((row.get("retriever") for row in metrics), RETRIEVERS)
    if retrievers:
        console.print(_retrieval(metrics, retrievers))


def tables_by_split(
    columns: Sequence[Column], rows: Mapping[str, Sequence[Text | str]]
) -> Iterator[Table]:
    """Yield a table per split, named where its rows are named: all columns are too wide for one.

    Args:
        columns: of all splits.
        rows: by name, one cell for each of the columns.
    """
    for split in dict.fromkeys(column.split for column in columns):
        table = bare_table(SHORT.get(split, split))
        table.columns[0].min_width = min(LONGEST_NAME, max(map(len, rows), default=0))
        own = [place for place, column in enumerate(columns) if column.split == split]
        for place in own:
            table.add_column(columns[place].title.replace(" ", "\n"), justify="right")
        for name, cells in rows.items():
            table.add_row(Text(name), *(cells[place] for place in own))
        yield table


def bare_table(first: str) -> Table:
    """Return a table whose first column names its rows."""
    # Without frames, so that no name is cut in a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column(first, overflow="fold")
    return table


def _retrieval(metrics: Sequence[Metric], retrievers: Sequence[str]) -> Table:
    table = bare_table("retriever")
    columns = []
    for name in RETRIEVAL:
        table.add_column(name.replace("_", " "), justify="right")
        found = {r: number(find(metrics, name, retriever=r)) for r in retrievers}
        columns.append(_cells(found, better=1))
    for retriever in retrievers:
        table.add_row(Text(retriever), *(cells[retriever] for cells in columns))
    return table


def _cells(values: dict[str, float | None], better: int) -> dict[str, Text]:
    winners = best(values, better)
    return {
        key: Text(
            spell(value) if value is not None else "-", style="bold" if key in winners else ""
        )
        for key, value in values.items()
    }


def _floors(metrics: Sequence[Metric]) -> str:
    parts = []
    for split in SPLITS:
        clean, zero = (
            number(find(metrics, name, split=split))
            for name in ("perplexity_clean", "perplexity_zero")
        )
        if clean is not None or zero is not None:
            parts.append(
                f"{SHORT[split]} {spell(clean)} without an SAE, {spell(zero)} zero-ablated"
            )
    return f"perplexity: {'; '.join(parts)}" if parts else "perplexity without an SAE: not measured"
