"""What the numbers of `ssae diagnose` say, in plain words: computed, never more than they do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssae.report.contexts import visible
from ssae.report.table import SAES, Metric, find, number, ordered, spell

Tables = Mapping[str, Sequence[Mapping[str, Any]]]

SPLITS = {"subdomain_test": "on the subdomain's test split", "general_test": "on the general one"}
NOTEWORTHY = 0.05
"""Relative residual of the cone condition that a sentence is written for."""


def answers(metrics: Sequence[Metric], tables: Tables) -> dict[str, list[str]]:
    """Return what was found, by question, the largest question first."""
    names = ordered((row["sae"] for row in metrics), SAES)
    found = {
        "How far is each SAE from the best dictionaries?": _scale(tables["gaps"]),
        "Are its directions stationary?": _stationarity(metrics, names),
        "What brings them closer, what moves them away?": _changes(metrics, names),
        "Are latents of rare tokens the ones that violate it?": _rarity(metrics, names),
        "Is a signed direction held as two latents?": _pairs(metrics, tables["pairs"], names),
        "Which concepts imply each other?": _cone(metrics, tables["cones"], names),
        "What is left over?": _residual(metrics, tables["types"], names),
        "How do latents split?": _splits(tables["splits"]),
    }
    spelt = {question: list(sentences) for question, sentences in found.items()}
    return {question: sentences for question, sentences in spelt.items() if sentences}


def _scale(gaps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in gaps:
        if row["where"] != "held_out":
            continue
        encoder = row["sae"] - row["optimal_codes"]
        better = "less" if row["convex_path"] < row["optimal_codes"] else "more"
        yield (
            f"{row['sae_name']}: its objective on held-out tokens is {spell(row['sae'])}, of which "
            f"its encoder costs {spell(encoder)} ({100 * encoder / row['sae']:.0f} %): its own "
            f"directions, {row['num_directions']:,} of them in use, reach "
            f"{spell(row['optimal_codes'])} with optimal codes. {row['num_convex']:,} directions "
            f"of other tokens cost {better}, {spell(row['convex_path'])}; no dictionary of any "
            f"size with its b_dec costs less than {spell(row['wide_limit'])}."
        )


def _stationarity(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        parts = []
        for split, where in SPLITS.items():
            row = find(metrics, "excess_median", split=split, sae=name)
            if number(row) is not None:
                parts.append(f"{_interval(row)} {where}")
        lam = number(find(metrics, "lam", split="subdomain_test", sae=name))
        unit = f"lam = {spell(lam)}" if lam else "E||r||"
        if parts:
            yield f"{name}: median excess violation {', '.join(parts)}; in units of {unit}."


def _changes(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        rows = [r for r in metrics if r["name"] == "excess_change" and r["sae"] == name]
        for other in dict.fromkeys(row["reference"] for row in rows):
            parts = [
                f"{_direction(row)} {SPLITS[row['split']]} ({_interval(row, sign=True)})"
                for row in rows
                if row["reference"] == other
            ]
            yield f"The {name}'s latents, against the same ones of the {other}: {', '.join(parts)}."


def _direction(row: Metric) -> str:
    if row["low"] <= 0 <= row["high"]:
        return "a tie"
    return "closer to stationary" if row["high"] < 0 else "further from stationary"


def _rarity(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    split = "subdomain_test"
    for name in names:
        row = find(metrics, "excess_rarity_correlation", split=split, sae=name)
        if row is None or number(row) is None:
            continue
        bands = ("rarest quarter", "most common quarter")
        rare, common = (
            find(metrics, "excess_median", split=split, sae=name, band=band) for band in bands
        )
        if row["low"] > 0:
            answer = "latents of rare tokens violate stationarity more"
        elif row["high"] < 0:
            answer = "latents of rare tokens violate stationarity less"
        else:
            answer = "rare tokens make no clear difference"
        yield (
            f"{name}: {answer} (rank correlation of violation with rarity {_interval(row)}; median "
            f"{spell(number(rare))} in the rarest quarter, {spell(number(common))} in the most "
            "common)."
        )


def _pairs(
    metrics: Sequence[Metric], pairs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    split = "subdomain_test"
    for name in names:
        own = [row for row in pairs if (row["sae"], row["split"]) == (name, split)]
        for row in [row for row in own if row["is_dense"]][:3]:
            yield (
                f"{name}: latents {row['first']} and {row['second']} are an antipodal pair "
                f"covering {100 * row['share']:.1f} % of variance (cosine {row['cosine']:.2f}, "
                f"active on {100 * row['densities'][0]:.0f} and {100 * row['densities'][1]:.0f} % "
                f"of tokens, together on {100 * row['joint']:.1f} %): one signed direction."
            )
        if any(row["is_dense"] for row in own):
            continue
        total = number(find(metrics, "antipodal_pairs", split=split, sae=name)) or 0
        yield (
            f"{name}: no signed direction is held as two latents (opposite directions: "
            f"{total:.0f} pairs, none of them dense)."
        )


def _cone(
    metrics: Sequence[Metric], cones: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    split = "subdomain_test"
    for name in names:
        row = find(metrics, "cone_violated", split=split, sae=name)
        if row is None or number(row) is None:
            continue
        text = (
            f"{name}: {100 * row['value']:.0f} % of the examined latents violate the cone condition"
        )
        own = [r for r in cones if (r["sae"], r["split"]) == (name, split) and r["children"]]
        if own and own[0]["residual"] > NOTEWORTHY:
            worst = own[0]
            child = worst["children"][0]
            text += (
                f", most of all latent {worst['latent']} ({_tokens(worst)}), towards which latent "
                f"{child['latent']} ({_tokens(child)}) would turn"
            )
        yield f"{text}."


def _residual(
    metrics: Sequence[Metric], types: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    split = "subdomain_test"
    for name in names:
        numbers = [
            number(find(metrics, metric, split=split, sae=name))
            for metric in ("shrinkage_share", "linear_share", "effective_dimensions")
        ]
        if None in numbers:
            continue
        shrinkage, linear, dimensions = (float(value or 0) for value in numbers)
        own = [row for row in types if (row["sae"], row["split"]) == (name, split)]
        carried = ", ".join(f"\u201c{visible(row['token']).strip()}\u201d" for row in own[:3])
        yield (
            f"{name}: {100 * shrinkage:.1f} % of the squared residual lies in the span of the "
            f"active directions, {100 * max(0.0, linear):.0f} % is linear in x; the rest spreads "
            f"over {dimensions:.0f} dimensions" + (f", most of it on {carried}." if own else ".")
        )


def _splits(splits: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in splits:
        counts = row["children"]
        total = sum(counts)
        if not total:
            continue
        split = sum(counts[2:])
        text = (
            f"From {row['narrow']} to {row['wide']}: {100 * split / total:.0f} % of latents split "
            f"into several, {100 * counts[0] / total:.0f} % have no child"
        )
        if row["absorbed"] is not None:
            share = 100 * row["absorbed"]
            text += f"; where another child fires, the heir falls silent on {share:.0f} % of tokens"
        yield f"{text}."


def _tokens(row: Mapping[str, Any]) -> str:
    return ", ".join(f"\u201c{visible(token).strip()}\u201d" for token in row["tokens"][:2])


def _interval(row: Metric | None, *, sign: bool = False) -> str:
    value, low, high = (number(row, key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return spell(value)
    if sign:
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{spell(value)} ({spell(low)} to {spell(high)})"
