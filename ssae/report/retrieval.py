"""What was retrieved, for a person to judge: a page and a table in the terminal."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from ssae.artifact.replace import write_text
from ssae.report import definitions
from ssae.report.excerpt import one_line
from ssae.report.map import plane
from ssae.report.page import page_environment
from ssae.report.retrieval_figures import Layer, map_figure, score_histogram
from ssae.report.sources import breakdown, prefix
from ssae.report.table import spell
from ssae.report.terminal import bare_table

NUM_BEST, NUM_BORDER = 20, 10
TEXT_LIMIT = 400
NUM_SEED_ROWS = 20
MAP_POINTS = {"pool": 600, "selected": 300, "seeds": 100}  # 2 s of t-SNE on one core
NAME_LIMIT, WORDS_LIMIT, TIP_LIMIT, LANDMARK_LIMIT = 80, 100, 90, 24
NUM_LAST_LINES, SEED_WORDS = 3, 40


class Retrieved(NamedTuple):
    """What a retriever chose, and what it chose from."""

    documents: datasets.Dataset
    """Best first: text, source, score, rank (from 1), retriever, query (index of the seed it is
    nearest to, -1 where the retriever does not know), hash, num_tokens, num_characters."""
    seeds: Sequence[str]
    scores: np.ndarray
    """(num_pool,) float32; -inf where the retriever did not look."""
    sources: Sequence[str]
    """Of the pool, (num_pool,)."""
    sample_texts: Sequence[str]
    """Some documents of the pool, drawn at random; the selected ones may be among them."""
    sample_sources: Sequence[str]
    left_out: Mapping[str, int]
    """Reason to number of documents that were left out for it."""


class SeedRow(NamedTuple):
    """What one seed brought."""

    query: int
    """Its index; -1: of these documents the retriever does not know."""
    num_documents: int
    num_tokens: int
    share: float
    """Of the selection's tokens."""
    words: str


def write_retrieval_page(
    path: Path,
    retrieved: Retrieved,
    *,
    title: str,
    summary: Mapping[str, str],
    quality: Mapping[str, float],
) -> None:
    """Write the page atomically: the file is the old one or the whole new one.

    Args:
        path: the file; its folder exists.
        retrieved: what was retrieved from what.
        title: of the page.
        summary: how it was retrieved (retriever, budget, corpus, ...), name to text.
        quality: precision, recall, average_precision; empty without labels.

    Raises:
        ValueError: `scores` or `sample_texts` and their sources differ in number.
    """
    write_text(path, render(retrieved, title=title, summary=summary, quality=quality))


def render(
    retrieved: Retrieved,
    *,
    title: str,
    summary: Mapping[str, str],
    quality: Mapping[str, float],
) -> str:
    """Return the page of `write_retrieval_page`."""
    for scored, sources in (("scores", "sources"), ("sample_texts", "sample_sources")):
        sizes = len(getattr(retrieved, scored)), len(getattr(retrieved, sources))
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{scored} and {sources} are of the same documents, got {sizes[0]} and {sizes[1]}"
            )
    documents, pool_scores = retrieved.documents, np.asarray(retrieved.scores, np.float32)
    selected_scores = np.asarray(documents["score"][:], np.float32)
    num = len(documents)
    environment = page_environment()
    environment.filters |= {"spell": spell, "one_line": one_line}
    return environment.get_template("retrieval.html.jinja").render(
        title=title,
        summary=summary,
        quality=quality,
        definitions=definitions.METRICS,
        num_documents=num,
        num_tokens=sum(documents["num_tokens"][:]),
        num_pool=len(pool_scores),
        retrievers=sorted(set(documents["retriever"][:])),
        scores=_score_facts(pool_scores, selected_scores),
        histogram=Markup(score_histogram(pool_scores, selected_scores)),
        sources=breakdown(documents["source"][:], retrieved.sources[:]),
        seed_rows=seed_rows(documents, retrieved.seeds),
        num_seeds=len(retrieved.seeds),
        num_seed_rows=NUM_SEED_ROWS,
        map=Markup(_map(retrieved)),
        map_points=MAP_POINTS,
        best=documents.select([*range(min(NUM_BEST, num))]),
        border=documents.select([*range(max(NUM_BEST, num - NUM_BORDER), num)]),
        left_out=retrieved.left_out,
        text_limit=TEXT_LIMIT,
        name_limit=NAME_LIMIT,
        words_limit=WORDS_LIMIT,
    )


def seed_rows(documents: datasets.Dataset, seeds: Sequence[str]) -> list[SeedRow]:
    """Return what the seeds brought, most tokens first; those that brought nothing are left out."""
    tokens = np.asarray(documents["num_tokens"][:], np.int64)
    found, places, counts = np.unique(
        np.asarray(documents["query"][:], np.int64), return_inverse=True, return_counts=True
    )
    sums = np.bincount(places, tokens, len(found))
    rows = []
    for query, count, total in zip(found.tolist(), counts.tolist(), sums.tolist(), strict=True):
        known = 0 <= query < len(seeds)
        words = one_line(seeds[int(query)], WORDS_LIMIT) if known else "(not known)"
        share = total / max(1, int(tokens.sum()))
        rows.append(SeedRow(query, count, int(total), share, words))
    return sorted(rows, key=lambda row: (-row.num_tokens, row.query))


def _score_facts(pool: np.ndarray, selected: np.ndarray) -> dict[str, Any]:
    """Return how both are spread, and how many reach the selection's lowest score."""
    pool, selected = pool[np.isfinite(pool)], selected[np.isfinite(selected)]
    levels = {"lowest": 0, "25 %": 25, "median": 50, "75 %": 75, "highest": 100}
    spread = {
        name: np.percentile(values.astype(np.float64), list(levels.values())).tolist()
        for name, values in (("selected", selected), ("scored pool", pool))
        if len(values)
    }
    reached = int((pool >= selected.min()).sum()) if len(selected) else 0
    return {"num_scored": len(pool), "reached": reached, "levels": levels, "spread": spread}


def _map(retrieved: Retrieved) -> str:
    """Draw evenly spread members of each kind, so that best and border are both on the map."""
    documents = retrieved.documents
    kinds: dict[str, Sequence[str]] = {
        "pool": retrieved.sample_texts,
        "selected": documents["text"],  # a column: only the texts drawn are read
        "seeds": retrieved.seeds,
    }
    places = {kind: _spread(len(texts), MAP_POINTS[kind]) for kind, texts in kinds.items()}
    texts = {kind: [kinds[kind][i] for i in places[kind]] for kind in kinds}
    flat = [text for kind in kinds for text in texts[kind]]
    borders = np.cumsum([len(texts[kind]) for kind in kinds])[:-1]
    points = dict(zip(kinds, np.split(plane(flat), borders), strict=True))
    ranks = documents["rank"]
    tips = {
        # A name for each point of the pool would triple the page.
        "pool": [],
        "selected": [
            f"{ranks[i]}: {one_line(text, TIP_LIMIT)}"
            for i, text in zip(places["selected"], texts["selected"], strict=True)
        ],
        "seeds": [
            f"seed {i}: {one_line(text, TIP_LIMIT)}"
            for i, text in zip(places["seeds"], texts["seeds"], strict=True)
        ],
    }
    sources = [retrieved.sample_sources[i] for i in places["pool"]]
    depth = breakdown(sources, ()).depth
    names = [source if depth is None else prefix(source, depth) for source in sources]
    return map_figure(
        {kind: Layer(points[kind], tips[kind]) for kind in kinds},
        [one_line(name, LANDMARK_LIMIT) for name in names],
    )


def _spread(num: int, most: int) -> list[int]:
    return np.linspace(0, num - 1, min(num, most)).round().astype(int).tolist()


def print_selection(
    documents: datasets.Dataset,
    seeds: Sequence[str],
    console: Console | None = None,
    num_shown: int = 10,
) -> None:
    """Print the best documents, the last that got in, and which seed brought most.

    Args:
        documents: as in `Retrieved`.
        seeds: their texts.
        console: where to print; the terminal if not given.
        num_shown: how many of the best.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 100)
    table = bare_table("rank")
    table.expand = True
    for name in ("score", "tokens", "seed"):
        table.add_column(name, justify="right", no_wrap=True)
    cut = "crop" if console.options.ascii_only else "ellipsis"
    table.add_column("source", no_wrap=True, overflow=cut, max_width=console.width // 5)
    table.add_column("text", no_wrap=True, overflow=cut, ratio=1)
    num = len(documents)
    first = min(num_shown, num)
    last = max(first, num - NUM_LAST_LINES)
    shown: list[Any] = list(documents.select([*range(first), *range(last, num)]))
    for place, row in enumerate(shown):
        if place == first and last > first:
            table.add_row(*["..."] * 6)
        table.add_row(*_cells(row, console))
    if num:
        console.print(table)
    rows = seed_rows(documents, seeds)
    words = f"{num:,} documents, {sum(row.num_tokens for row in rows):,} tokens"
    if rows and rows[0].query >= 0:
        words += f"; seed {rows[0].query} brought {100 * rows[0].share:.1f} % of the tokens"
        words += f' of {len(seeds)} seeds: "{one_line(rows[0].words, SEED_WORDS)}"'
    console.print(Text(_encodable(words, console), style="italic"))


def _cells(row: dict[str, Any], console: Console) -> list[Text]:
    score = spell(row["score"]) if math.isfinite(row["score"]) else "-"
    seed = str(row["query"]) if row["query"] >= 0 else "-"
    texts = (str(row["rank"]), score, f"{row['num_tokens']:,}", seed)
    names = (one_line(row["source"], NAME_LIMIT), one_line(row["text"], console.width))
    return [Text(_encodable(text, console)) for text in (*texts, *names)]


def _encodable(text: str, console: Console) -> str:
    return text.encode(console.encoding, "replace").decode(console.encoding)
