"""What the numbers of `ssae diagnose` say, in plain words: computed, never more than they do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssae.report.diagnose_structure import MAIN, Tables, cone, pairs, residual, splits, value_of
from ssae.report.table import SAES, Metric, find, number, ordered, spell

SPLITS = {"subdomain_test": "on the subdomain's test split", "general_test": "on the general one"}
SMALL = 0.01
"""Change of E||r|| below which a direction is as stationary as before, however sure that is."""
CLOSE = 0.05
"""By which there may be more directions of those that are called better."""


def answers(metrics: Sequence[Metric], tables: Tables) -> dict[str, list[str]]:
    """Return what was found, by question, the largest question first."""
    names = ordered((row["sae"] for row in metrics), SAES)
    found = {
        "How far is each SAE from the best dictionaries?": _scale(metrics, tables),
        "Are its directions stationary?": _stationarity(metrics, names),
        "What brings them closer, what moves them away?": _changes(metrics, names),
        "Are latents of rare tokens the ones that violate it?": _rarity(metrics, names),
        "Is a signed direction held as two latents?": pairs(metrics, tables["pairs"], names),
        "Which concepts imply each other?": cone(metrics, tables["cones"], names),
        "What is left over?": residual(metrics, tables, names),
        "How do latents split?": splits(tables["splits"]),
    }
    spelt = {question: list(sentences) for question, sentences in found.items()}
    return {question: sentences for question, sentences in spelt.items() if sentences}


def _scale(metrics: Sequence[Metric], tables: Tables) -> Iterator[str]:
    rows = [row for row in tables["gaps"] if row["where"] == "held_out"]
    for row in rows:
        encoder = row["sae"] - row["optimal_codes"]
        yield (
            f"{row['sae_name']}: its objective on held-out tokens is {spell(row['sae'])} at lam "
            f"{row['lam']:.3g}; with optimal codes its {row['num_directions']:,} directions in use "
            f"reach {spell(row['optimal_codes'])}, {100 * encoder / row['sae']:.0f} % less. "
            f"{row['num_own']:,} of them cost {spell(row['own_path'])}, {row['num_convex']:,} "
            f"directions of other tokens {spell(row['convex_path'])}{_better(row)}. No dictionary "
            f"of any size with its b_dec costs less than {spell(row['wide_limit'])}."
        )
    penalties = {row["sae"]: row["penalty"] for row in tables["violations"]}
    free = [row["sae_name"] for row in rows if penalties[row["sae_name"]]["origin"] == "none"]
    shares = {name: value_of(metrics, "shrinkage_share", name) or 0.0 for name in free}
    if free:
        parts = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
        yield (
            "Training asked no price for z, so part of what optimal codes save is a price that the "
            "encoder never saw. At the latents that it chooses, least squares would take off the "
            f"squared error: {parts}."
        )


def _better(row: Mapping[str, Any]) -> str:
    """Say which directions serve new text better, unless those are more."""
    own, others = row["num_own"], row["num_convex"]
    if row["own_path"] < row["convex_path"] and own <= (1 + CLOSE) * others:
        return ": its own serve new text better"
    if row["own_path"] > row["convex_path"] and others <= (1 + CLOSE) * own:
        return ": its own serve new text worse"
    return ""


def _stationarity(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    parts = []
    for split, where in SPLITS.items():
        values = {n: value_of(metrics, "tangent_excess_median", n, split) for n in names}
        spelt = [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
        parts += [f"{where}: {', '.join(spelt)}"] if spelt else []
    if parts:
        yield (
            "The part of a latent's mean residual that turning its direction would remove, as a "
            f"share of E||r||, in the median ({'; '.join(parts)}). An optimum of that text has 0."
        )
    for name in names:
        own, plain = (
            value_of(metrics, f"tangent_excess{which}_median", name) for which in ("_own_risk", "")
        )
        if own is not None and plain is not None:
            yield (
                f"{name}: under the weights that its own objective gives to tokens it is "
                f"{own:.3f} instead of {plain:.3f} {SPLITS['subdomain_test']}."
            )
        lam, excess = (value_of(metrics, metric, name) for metric in ("lam", "excess_median"))
        if lam and excess is not None:
            text = (
                f"{name} pays lam = {lam:.3g}: its mean residuals miss lam d_j by "
                f"{excess:.2f} lam, in the median"
            )
            error = value_of(metrics, "pair_identity_error", name)
            if error is not None:
                text += (
                    "; the cosines of latents differ from those that their residuals imply by "
                    f"{error:.2f}, in the median"
                )
            yield f"{text}."


def _changes(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        rows = [r for r in metrics if r["name"] == "tangent_excess_change" and r["sae"] == name]
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
    if abs(row["value"]) < SMALL:
        return "hardly changed"
    return "closer to stationary" if row["high"] < 0 else "further from stationary"


def _rarity(metrics: Sequence[Metric], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        row = find(metrics, "tangent_excess_rarity_correlation", split=MAIN, sae=name)
        if row is None or number(row) is None:
            continue
        rare, common = (
            value_of(metrics, "tangent_excess_median", name, band=band)
            for band in ("rarest quarter", "most common quarter")
        )
        if row["low"] > 0:
            answer = "latents of rare tokens violate stationarity more"
        elif row["high"] < 0:
            answer = "latents of rare tokens violate stationarity less"
        else:
            answer = "rare tokens make no clear difference"
        text = (
            f"{name}: {answer} (rank correlation with rarity {_interval(row)}; median "
            f"{rare or 0:.2f} in the rarest quarter, {common or 0:.2f} in the most common)"
        )
        num = value_of(metrics, "tail_latents", name) or 0
        tail = find(metrics, "tangent_excess_tail_difference", split=MAIN, sae=name)
        if tail is not None and number(tail) is not None:
            text += (
                f"; the {num:.0f} latents that represent a tail type differ from all others by "
                f"{_interval(tail, sign=True)}"
            )
        yield f"{text}."


def _interval(row: Metric | None, *, sign: bool = False) -> str:
    value, low, high = (number(row, key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return spell(value)
    if sign:
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
