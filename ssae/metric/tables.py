"""What is drawn: entries of tables.json, each documented by the function that makes it.

The figures that are named are those of arXiv 2411.00743.
"""

from typing import Any

import numpy as np
from torch import Tensor

from ssae.metric.concept import ConceptScores
from ssae.metric.error_by_rank import RankErrors
from ssae.metric.frequency import rank_bins
from ssae.metric.latents import firing_rate_histogram
from ssae.metric.measures import Measured
from ssae.metric.represented import TypesFound
from ssae.metric.spread import Spread
from ssae.metric.tail import MIN_COUNT

MOST_POINTS = 200
"""Of a curve."""
MOST_LATENTS = 1000
"""Of a scatter plot."""


def split_tables(
    measured: Measured, silence: dict[str, int], pool_counts: Tensor, ranks: Tensor
) -> dict[str, list[dict[str, Any]]]:
    """Return {table: entries} of one SAE on one split.

    Args:
        measured: what was measured.
        silence: counts of its silent latents, for the note below the firing rates.
        pool_counts: (vocab_size,) occurrences of types in a sample of the pool.
        ranks: (vocab_size,) of the types in it.
    """
    fires, num_tokens = measured.fires, measured.num_tokens
    num = {"num_latents": len(fires), "num_tokens": num_tokens}
    spread = spread_table(measured.spread, measured.types.type_counts, ranks)
    return {
        "error_by_rank": error_rows(measured.rank_errors, len(ranks)),
        "firing_rates": [{**num, **silence, **firing_rate_histogram(fires, num_tokens)}],
        "represented": [represented_table(measured.types, pool_counts, ranks)],
        "latent_ranks": [{"num_tokens": num_tokens, **latent_ranks(fires)}],
        "spread": [] if spread is None else [spread],
    }


def error_rows(errors: RankErrors, vocab_size: int) -> list[dict[str, Any]]:
    """Return {rank_low, rank_high, num_tokens, mean, max} of every bin that has tokens; ranks >= 1.

    Figure 3.
    """
    edges = rank_bins(vocab_size).tolist()
    rows = []
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        count = int(errors.counts[index])
        if count:
            row: dict[str, Any] = {"rank_low": low + 1, "rank_high": high, "num_tokens": count}
            row["mean"] = float(errors.sums[index] / count)
            row["max"] = float(errors.maxima[index])
            rows.append(row)
    return rows


def represented_table(types: TypesFound, pool_counts: Tensor, ranks: Tensor) -> dict[str, Any]:
    """Return bins and cumulative of the types with n_v >= 5 (figures 2, 11, 14 and 6).

    bins: {low, high, num_types, num_represented}, half decades of occurrences per million tokens of
    the pool; types that the sample of the pool does not contain are in a bin from 0.
    cumulative: [share of the tokens, share of the represented types], from the most frequent type
    of the pool to the rarest; empty where no type is represented.

    Args:
        types: which types are represented.
        pool_counts: (vocab_size,) in a sample of the pool.
        ranks: (vocab_size,) in it.
    """
    once = 1e6 / max(1, int(pool_counts.sum()))  # occurrences per million of a single one
    per_million = pool_counts.double().numpy() * once
    counted = np.flatnonzero(types.type_counts >= MIN_COUNT)
    represented = types.represented
    edges = 10 ** (np.arange(np.floor(2 * np.log10(once)), 14) / 2)
    bins_of = np.searchsorted(edges, per_million[counted], side="right")
    lows = np.concatenate([[0], edges])
    bins = [
        {
            "low": float(lows[b]),
            "high": float(edges[b]),
            "num_types": int((bins_of == b).sum()),
            "num_represented": int(represented[counted[bins_of == b]].sum()),
        }
        for b in np.unique(bins_of)
    ]
    order = counted[np.argsort(ranks.numpy()[counted])]
    tokens = types.type_counts[order].cumsum() / max(1, types.type_counts.sum())
    found = represented[order].cumsum()
    cumulative = []
    if len(found) and found[-1]:
        steps = np.linspace(0, tokens[-1], MOST_POINTS - 1)
        shown = np.unique(np.minimum(np.searchsorted(tokens, steps), len(tokens) - 1))
        points = np.column_stack([tokens, found / found[-1]])[shown]
        cumulative = [[0.0, 0.0], *points.tolist()]
    return {"bins": bins, "cumulative": cumulative}


def latent_ranks(fires: Tensor) -> dict[str, Any]:
    """Return ranks and counts: firings of the latents that fire, most first (figure 7).

    At most 200 ranks, even in the logarithm.
    """
    counts = fires[fires > 0].sort(descending=True).values
    if not len(counts):
        return {"ranks": [], "counts": []}
    ranks = np.unique(np.geomspace(1, len(counts), MOST_POINTS).round().astype(int))
    return {"ranks": ranks.tolist(), "counts": counts[ranks - 1].tolist()}


def spread_table(spread: Spread, type_counts: np.ndarray, ranks: Tensor) -> dict[str, Any] | None:
    """Return entropy and largest activation of the latents that fire on >= 5 tokens (figure 5).

    entropy (nats) and max_activation (its log10): {bin_edges, counts}; max_per_type: lists
    rank_low, rank_high, mean, over the types in the text, of the largest activation on each;
    median_effective_types, of exp(entropy) (in place of figure 4); points: [entropy,
    max_activation] of at most 1000 latents. None where no latent fires so often.
    """
    often = np.flatnonzero(spread.fires >= MIN_COUNT)
    if not len(often):
        return None
    entropy, peaks = spread.entropy[often], spread.max_activation[often].astype(np.float64)
    logs = np.log10(peaks)
    edges = rank_bins(len(type_counts)).numpy()
    present = np.flatnonzero(type_counts)
    bins_of = np.searchsorted(edges, ranks.numpy()[present], side="right") - 1
    filled = np.unique(bins_of)
    means = [
        float(spread.max_per_type[present[bins_of == b]].mean(dtype=np.float64)) for b in filled
    ]
    shown = np.linspace(0, len(often) - 1, min(len(often), MOST_LATENTS)).round().astype(int)
    return {
        "entropy": histogram(entropy, np.linspace(0, max(1, np.ceil(2 * entropy.max()) / 2), 41)),
        "max_activation": histogram(logs, np.linspace(np.floor(logs.min()),
                                                      np.floor(logs.max()) + 1, 41)),
        "max_per_type": {
            "rank_low": (edges[filled] + 1).tolist(),
            "rank_high": edges[filled + 1].tolist(),
            "mean": means,
        },
        "median_effective_types": float(np.median(spread.effective_types[often])),
        "points": np.column_stack([entropy, peaks])[shown].tolist(),
    }  # fmt: skip


def log_ratio_table(ratios: np.ndarray) -> dict[str, Any]:
    """Return {bin_edges, counts, num_latents} of log-ratios of activation counts (17 and 18)."""
    widest = max(1.0, float(np.ceil(np.abs(ratios).max(initial=0))))
    found = histogram(ratios, np.linspace(-widest, widest, 81))
    return {**found, "num_latents": len(ratios)}


def cosine_table(cosines: np.ndarray) -> dict[str, Any]:
    """Return {bin_edges, counts} of cosines between decoder directions (figure 20)."""
    return histogram(cosines, np.linspace(-1, 1, 201))


def concept_rows(scores: ConceptScores, names: list[str], labels: np.ndarray) -> list[dict]:
    """Return {concept, num_documents, auroc, f1, latent} of every concept that was measured."""
    return [
        {
            "concept": names[index],
            "num_documents": int(labels[:, index].sum()),
            "auroc": float(scores.auroc[index]),
            "f1": float(scores.f1[index]),
            "latent": int(scores.latent[index]),
        }
        for index in np.flatnonzero(scores.measured)
    ]


def histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    """Return {bin_edges, counts} of values that all lie between the edges."""
    counts, _ = np.histogram(values, edges)
    assert counts.sum() == len(values)
    return {"bin_edges": edges.tolist(), "counts": counts.tolist()}
