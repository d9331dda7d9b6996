"""Where a selection comes from, beside where the pool comes from."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MOST_ROWS = 12
ENOUGH = 0.95
"""Share of the selection that the rows must name before sources are rolled up."""
DEEPEST = 8
"""Parts of a dotted name that are told apart once sources are rolled up."""


class SourceRow(NamedTuple):
    """One row: a source, or all sources that begin alike, or all others."""

    name: str
    num_selected: int
    num_pool: int
    other: bool = False


class Sources(NamedTuple):
    """The sources of a selection, the most frequent first."""

    rows: list[SourceRow]
    depth: int | None
    """Sources with the same first `depth` parts are one row; None where names are in full."""
    num_distinct: int
    """Sources in the selection before that."""


def prefix(source: str, depth: int) -> str:
    """Return the first parts of a dotted name.

    >>> prefix("comp.sys.ibm.pc", 2), prefix("reviews", 2)
    ('comp.sys', 'reviews')
    """
    return ".".join(source.split(".", depth)[:depth])


def breakdown(selected: Iterable[str], pool: Iterable[str]) -> Sources:
    """Count the documents of each source; rest as one row, so that the rows sum to the whole.

    Where MOST_ROWS sources do not hold nearly all of the selection, dotted names are rolled up: to
    as many parts as are possible with so few rows, to the first part if that is not enough.

    Args:
        selected: the source of each selected document.
        pool: the source of each document of the pool, the selected ones among them.
    """
    full = Counter(selected)
    counts, depth = full, None
    for parts in _depths(full):
        counts, depth = _rolled_up(full, parts), parts
        if sum(count for _, count in counts.most_common(MOST_ROWS)) >= ENOUGH * full.total():
            break
    if len(counts) == len(full):
        counts, depth = full, None
    in_pool = Counter(pool)
    num_pool = in_pool.total()
    in_pool = in_pool if depth is None else _rolled_up(in_pool, depth)
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_ROWS]
    rows = [SourceRow(name, count, in_pool[name]) for name, count in largest]
    rest_selected = full.total() - sum(row.num_selected for row in rows)
    rest_pool = num_pool - sum(row.num_pool for row in rows)
    if rest_selected or rest_pool:
        rows.append(SourceRow("all other sources", rest_selected, rest_pool, other=True))
    return Sources(rows, depth, len(full))


def _depths(counts: Counter[str]) -> range:
    """Return the numbers of parts to try, none where the full names do."""
    if sum(count for _, count in counts.most_common(MOST_ROWS)) >= ENOUGH * counts.total():
        return range(0)
    parts = max(name.count(".") for name in counts)  # one less than those of the longest
    return range(min(parts, DEEPEST), 0, -1)


def _rolled_up(counts: Mapping[str, int], depth: int) -> Counter[str]:
    rolled: Counter[str] = Counter()
    for name, count in counts.items():
        rolled[prefix(name, depth)] += count
    return rolled
