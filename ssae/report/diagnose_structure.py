"""What `ssae diagnose` says of pairs, cones, the residual and splits; see diagnose_sentences.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssae.report.contexts import visible
from ssae.report.table import Metric, find, number

Tables = Mapping[str, Sequence[Mapping[str, Any]]]

MAIN = "subdomain_test"
"""The split that is spoken of."""
NUM_PAIRS = 3
"""Spelt out; the table has more."""
NOTEWORTHY = 0.01
"""Share of the residual that a token type is named for."""


def pairs(
    metrics: Sequence[Metric], listed: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    """Say which latents are one signed direction, once for all SAEs that have a pair."""
    # Fine-tuned SAEs have the latents of the one they started from, by number.
    dense: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for row in listed:
        if row["split"] == MAIN and row["is_dense"]:
            dense.setdefault((min(row["first"], row["second"]), max(row["first"], row["second"])),
                             []).append(row)  # fmt: skip
    largest = sorted(dense.items(), key=lambda item: -max(row["share"] for row in item[1]))
    for (first, second), rows in largest[:NUM_PAIRS]:
        shares = ", ".join(
            f"{100 * row['share']:.1f} % of variance in {row['sae']}" for row in rows
        )
        row = max(rows, key=lambda row: row["share"])
        low, high = sorted(100 * density for density in row["densities"])
        yield (
            f"latents {first} and {second} are an antipodal pair covering {shares}: one signed "
            f"direction (cosine {row['cosine']:.2f}, active on {low:.0f} and {high:.0f} % of "
            f"tokens, together on {100 * row['joint']:.1f} %)."
        )
    if len(largest) > NUM_PAIRS:
        yield f"{len(largest)} such pairs were found; these are the largest."
    for name in names:
        total = value_of(metrics, "antipodal_pairs", name)
        if total is not None and not any(
            row["sae"] == name for rows in dense.values() for row in rows
        ):
            yield (
                f"{name}: no signed direction is held as two latents"
                + (
                    f" ({total:.0f} pairs of opposite directions, none of them dense)."
                    if total
                    else "."
                )
            )


def cone(
    metrics: Sequence[Metric], cones: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    """Say how many latents others would turn towards, and the one that gains most."""
    for name in names:
        share = value_of(metrics, "cone_violated", name)
        examined = value_of(metrics, "cone_examined", name)
        if share is None or examined is None:
            continue
        text = (
            f"{name}: {share * examined:.0f} of {examined:.0f} examined latents violate the cone "
            "condition"
        )
        own = [r for r in cones if (r["sae"], r["split"]) == (name, MAIN) and r["children"]]
        if share > 0 and own:
            worst, child = own[0], own[0]["children"][0]
            text += (
                f", most of all latent {worst['latent']} ({_tokens(worst)}), towards which latent "
                f"{child['latent']} ({_tokens(child)}) would turn (residual "
                f"{worst['residual']:.2g})"
            )
        yield f"{text}."


def residual(metrics: Sequence[Metric], tables: Tables, names: Sequence[str]) -> Iterator[str]:
    """Say where the squared residual lies, of all SAEs side by side."""
    width = max((len(row["cumulative"]) for row in tables["spectrum"]), default=0)
    for metric, factor, unit, text in (
        ("shrinkage_share", 100, " %", "Of the squared residual lies in the span of the active "
         "directions"),
        ("effective_dimensions", 1, "", f"What does not spreads, of {width} dimensions, over"),
        ("linear_share", 100, " %", "Of all of it a linear map of x would predict"),
    ):  # fmt: skip
        values = {name: value_of(metrics, metric, name) for name in names}
        spelt = [f"{name} {factor * v:.0f}{unit}" for name, v in values.items() if v is not None]
        if spelt:
            yield f"{text}: {', '.join(spelt)}."
    for name in names:
        own = [r for r in tables["types"] if (r["sae"], r["split"]) == (name, MAIN)]
        if own and own[0]["share"] >= NOTEWORTHY:
            yield (
                f"{name}: {_tokens({'tokens': [own[0]['token']]})} carries most above its share, "
                f"{100 * own[0]['share']:.1f} % of it on {100 * own[0]['token_share']:.1f} % of "
                "tokens."
            )


def splits(listed: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say what became of latents in a wider SAE."""
    for row in listed:
        counts = row["children"]
        total = sum(counts)
        if not total:
            continue
        text = (
            f"From {row['narrow']} to {row['wide']}: {sum(counts[2:]):,} of {total:,} latents "
            f"split into several, {counts[0]:,} have no child"
        )
        if row["absorbed"] is not None:
            text += (
                f"; where another child fires, the heir is silent on {100 * row['absorbed']:.0f} % "
                f"of tokens ({row['absorbing']:,} families)"
            )
        yield f"{text}."


def _tokens(row: Mapping[str, Any]) -> str:
    return ", ".join(f"\u201c{visible(token).strip()}\u201d" for token in row["tokens"][:2])


def value_of(
    metrics: Sequence[Metric], metric: str, sae: str, split: str = MAIN, band: str = "all"
) -> float | None:
    """Return a number of an SAE; None if it was not measured."""
    return number(find(metrics, metric, sae=sae, split=split, band=band))
