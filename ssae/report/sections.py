"""The figures of arXiv 2411.00743 and the tables beside them, as the page shows them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ssae.report import captions, figures, latent_figures, tail_figures
from ssae.report.change import SUBJECT
from ssae.report.marks import Row, Style
from ssae.report.table import SPLITS, Metric, best, find, finite, number, ordered

REFERENCE = "generalist"
MOST_CONCEPTS = 60
CONCEPT_SPLIT = "both_tests"


class Drawing(NamedTuple):
    """A figure of the page."""

    svg: Markup
    caption: str


class Plan(NamedTuple):
    """What is drawn of one table of tables.json."""

    table: str
    draw: Callable[..., str]
    say: Callable[..., str]
    title: str
    source: str
    """Where the figure comes from; empty for those that are only ours."""
    splits: tuple[str, ...] = SPLITS
    pair: bool = False
    """Whether only the generalist and the specialist are drawn: more would cover each other."""


TAIL = (
    Plan("represented", tail_figures.represented_by_frequency, captions.represented_by_frequency,
         "Represented types by frequency", "figures 2, 11 and 14 of arXiv 2411.00743"),
    Plan("represented", tail_figures.cumulative_represented, captions.cumulative_represented,
         "Where the represented types are", "figure 6 of arXiv 2411.00743"),
)  # fmt: skip
RANKS = (
    Plan("error_by_rank", figures.error_by_rank, captions.error_by_rank,
         "Error against token rank", "figure 3 of arXiv 2411.00743"),
)  # fmt: skip
LATENTS = (
    Plan("latent_ranks", latent_figures.activation_counts, captions.activation_counts,
         "Activation count against latent rank", "figure 7 of arXiv 2411.00743"),
    Plan("spread", latent_figures.effective_types, captions.effective_types,
         "Token types that a latent stands for", "in place of figure 4 of arXiv 2411.00743",
         SPLITS[:1]),
    Plan("spread", latent_figures.entropy_against_maximum, captions.entropy_against_maximum,
         "Spread over types and largest activation", "figure 5 of arXiv 2411.00743", SPLITS[:1],
         pair=True),
    Plan("spread", latent_figures.largest_by_rank, captions.largest_by_rank,
         "Largest activation against token rank", "", SPLITS[:1]),
    Plan("decoder_cosines", latent_figures.decoder_cosines, captions.decoder_cosines,
         "Directions that turned", "figure 20 of arXiv 2411.00743", SPLITS[:1]),
    Plan("log_ratios", latent_figures.log_ratios, captions.log_ratios,
         "Activation counts against the start", "figures 17 and 18 of arXiv 2411.00743"),
)  # fmt: skip
FIRING = (
    Plan("firing_rates", figures.firing_rates, captions.firing_rates,
         "How often latents fire", ""),
)  # fmt: skip


def drawings(
    plans: Sequence[Plan], tables: Mapping[str, Any], styles: Mapping[str, Style]
) -> list[Drawing]:
    """Return what can be drawn of the plans, split beside split; nothing for what is absent."""
    return [drawing for plan in plans for drawing in _drawn(plan, tables, styles)]


def _drawn(plan: Plan, tables: Mapping[str, Any], styles: Mapping[str, Style]) -> Iterator[Drawing]:
    rows = tables.get(plan.table) or []
    if plan.pair:
        styles = {name: styles[name] for name in _pair(styles)}
    for split in plan.splits:
        timeless = not any("split" in row for row in rows)
        title = plan.title if timeless else f"{plan.title}: {split}"
        svg = plan.draw(rows, split=split, styles=styles, title=title)
        if svg:
            yield Drawing(Markup(svg), _caption(plan.say(rows, split=split, styles=styles), plan))


def _pair(names: Iterable[str]) -> list[str]:
    """Return the generalist and the specialist; the first and the last of SAEs called otherwise."""
    names = list(names)
    if not names:
        return []
    first = REFERENCE if REFERENCE in names else names[0]
    last = SUBJECT if SUBJECT in names else names[-1]
    return list(dict.fromkeys((first, last)))


def _caption(sentence: str, plan: Plan) -> str:
    source = f"({plan.source[0].upper()}{plan.source[1:]}.)" if plan.source else ""
    return " ".join(part for part in (sentence, source) if part)


def tail_drawings(
    metrics: Sequence[Metric], tables: Mapping[str, Any], styles: Mapping[str, Style]
) -> list[Drawing]:
    """Return tail_recall and tail_error of every SAE, then figures 2 and 6."""
    found = []
    split = SPLITS[0]
    for name, title, label in (
        ("tail_recall", "Tail recall", "share of tail types represented"),
        ("tail_error", "Tail error", "||r||^2 / E||x - mu||^2, mean over tail types"),
    ):
        svg = tail_figures.by_sae(
            metrics, name=name, split=split, styles=styles, title=f"{title}: {split}", label=label
        )
        if svg:
            said = captions.by_sae(metrics, name=name, split=split, styles=styles)
            found.append(Drawing(Markup(svg), said))
    return found + drawings(TAIL, tables, styles)


def tail_table(metrics: Sequence[Metric], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return tail_recall and tail_error of each SAE and split, and both against the generalist."""
    cells = (
        ("tail_recall", 1, {}),
        ("tail_recall_difference", 0, {"reference": REFERENCE}),
        ("tail_error", -1, {}),
        ("tail_error_ratio", 0, {"reference": REFERENCE}),
    )
    rows = []
    for split in SPLITS:
        own = [{"sae": sae, "split": split, "cells": []} for sae in names]
        for name, better, where in cells:
            found = {sae: find(metrics, name, sae=sae, split=split, **where) for sae in names}
            winners = best({sae: number(row) for sae, row in found.items()}, better)
            for row in own:
                cell = _cell(found[row["sae"]])
                row["cells"].append(cell | {"best": row["sae"] in winners})
        rows += [row for row in own if any(c["value"] is not None for c in row["cells"])]
    return rows


def concepts(
    metrics: Sequence[Metric], rows: Sequence[Row], names: Sequence[str]
) -> dict[str, Any] | None:
    """Return the recall of labelled concepts of each SAE and of each concept; None without any."""
    columns = ("concept_recall", "concept_auroc", "concept_f1")
    found = {
        name: {sae: find(metrics, name, sae=sae, split=CONCEPT_SPLIT) for sae in names}
        for name in columns
    }
    winners = {name: best({s: number(r) for s, r in own.items()}, 1) for name, own in found.items()}
    summary = {
        sae: [_cell(found[name][sae]) | {"best": sae in winners[name]} for name in columns]
        for sae in names
    }
    summary = {s: c for s, c in summary.items() if any(one["value"] is not None for one in c)}
    rows = [row for row in rows if row["sae"] in names]
    if not summary and not rows:
        return None
    sizes = {row["concept"]: row["num_documents"] for row in rows}
    largest = sorted(sizes, key=lambda concept: (-sizes[concept], concept))
    shown = []
    for concept in largest[:MOST_CONCEPTS]:
        own = {row["sae"]: row for row in rows if row["concept"] == concept}
        first = best({sae: finite(row, "auroc") for sae, row in own.items()}, 1)
        shown.append(
            {
                "concept": concept,
                "num_documents": sizes[concept],
                "saes": {
                    sae: {
                        "auroc": finite(row, "auroc"),
                        "f1": finite(row, "f1"),
                        "latent": row.get("latent"),
                        "best": sae in first,
                    }
                    for sae, row in own.items()
                },
            }
        )
    return {
        "columns": columns,
        "summary": summary,
        "names": ordered((row["sae"] for row in rows), names),
        "rows": shown,
        "num": len(sizes),
    }


def _cell(row: Metric | None) -> dict[str, Any]:
    return {"value": number(row), "low": finite(row, "low"), "high": finite(row, "high")}
