"""Which number stands where, and how it is spelt: shared by the page and the terminal."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Metric = Mapping[str, Any]

BANDS = ("< 1", "1 - 10", "10 - 100", "100 - 1k", "1k - 10k", ">= 10k")
SAES = ("generalist", "control", "specialist_erm", "specialist")
SPLITS = ("subdomain_test", "general_test")
RETRIEVERS = ("random", "bm25", "dense")
RETRIEVAL = ("precision", "recall", "average_precision")


MIN_TOKENS = 50
"""Bands of fewer tokens are in the tables, not in figures and sentences."""


class Column(NamedTuple):
    """One column of the headline table."""

    name: str
    split: str
    title: str
    better: int
    """-1: the lowest value is best, 1: the highest, 0: neither (l0 is a budget, not a score)."""


HEADLINE = (
    Column("fvu", "subdomain_test", "fvu", -1),
    Column("perplexity_spliced", "subdomain_test", "perplexity", -1),
    Column("ce_recovered", "subdomain_test", "ce recovered", 1),
    Column("l0", "subdomain_test", "l0", 0),
    Column("tail_recall", "subdomain_test", "tail recall", 1),
    Column("tail_error", "subdomain_test", "tail error", -1),
    Column("fvu", "general_test", "fvu", -1),
    Column("perplexity_spliced", "general_test", "perplexity", -1),
    Column("forgetting", "general_test", "forgetting", -1),
)


def find(metrics: Iterable[Metric], name: str, **where: Any) -> Metric | None:
    """Return the first row of `name` with the given values; band is "all" if not given."""
    where = {"band": "all", **where}
    for row in metrics:
        if row["name"] == name and all(row.get(key) == value for key, value in where.items()):
            return row
    return None


def number(row: Metric | None, key: str = "value") -> float | None:
    """Return row[key], or None where there is no number (no row, None, NaN)."""
    value = None if row is None else row.get(key)
    return None if value is None or math.isnan(value) else value


def finite(row: Metric | None, key: str = "value") -> float | None:
    """Return row[key] where it can be drawn and compared, else None."""
    value = number(row, key)
    return None if value is None or math.isinf(value) else value


def ordered(values: Iterable[str | None], known: Iterable[str]) -> list[str]:
    """Return the distinct values, the known ones first and in their order, the others sorted."""
    found = {value for value in values if value is not None}
    first = [value for value in known if value in found]
    return first + sorted(found.difference(first))


def best(values: Mapping[str, float | None], better: int) -> set[str]:
    """Return the keys of the best value; empty where nothing was compared or all are the same.

    Values that are spelt alike are tied, so that no difference is claimed that cannot be seen.
    """
    measured = {key: value for key, value in values.items() if value is not None}
    if better == 0 or len({spell(value) for value in measured.values()}) < 2:
        return set()
    winner = spell(max(measured.values(), key=lambda value: better * value))
    return {key for key, value in measured.items() if spell(value) == winner}


def spell(value: float | None) -> str:
    """Return a number as it is printed: four significant digits or four decimals, integers in full.

    >>> spell(0.19834), spell(1234567), spell(23.456), spell(None)
    ('0.1983', '1,234,567', '23.46', 'not measured')
    """
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:#.4g}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def spell_change(relative: float) -> str:
    """Return a relative change in per cent with its sign.

    >>> spell_change(-0.4697), spell_change(0.0001)
    ('-47.0%', '0.0%')
    """
    text = f"{100 * relative:+.1f}%"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text
