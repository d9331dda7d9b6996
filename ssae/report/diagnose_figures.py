"""Figures of `ssae diagnose`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from ssae.report.contexts import visible
from ssae.report.marks import Style, dots, drawn_rows, log_numbers
from ssae.report.svg import INK, RC, canvas, plain, to_svg

Row = Mapping[str, Any]

WHERE = {"subdomain_test": "subdomain", "general_test": "general text"}
SCALE = {
    "wide_limit": ("any number of directions", "|"),
    "convex_path": ("directions of tokens", "s"),
    "own_path": ("as many of its own", "^"),
    "optimal_codes": ("all of its own, optimal codes", "o"),
    "sae": ("the SAE", "D"),
}


@matplotlib.rc_context(RC)
def scale_of_objectives(gaps: Sequence[Row], styles: Mapping[str, Style]) -> str:
    """Draw P's objective of the five solutions for every SAE, on held-out tokens."""
    rows = [row for row in gaps if row["where"] == "held_out"]
    if not rows:
        return ""
    figure, axes = canvas(1.3 + 0.35 * len(rows))
    height = np.arange(len(rows))[::-1]
    for at, row in zip(height, rows, strict=True):
        ends = row["wide_limit"], row["sae"]
        axes.plot(ends, [at] * 2, color=styles[row["sae_name"]].colour, linewidth=1.2, alpha=0.6)
        for name, (_, marker) in SCALE.items():
            axes.plot(
                row[name], at, marker, color=styles[row["sae_name"]].colour, markersize=7,
                fillstyle="none" if marker in "so^" else "full",
            )  # fmt: skip
    for label, marker in SCALE.values():
        style = "none" if marker in "so^" else "full"
        axes.plot([], [], marker, color="#808080", label=label, markersize=7, fillstyle=style)
    axes.set_yticks(height, [plain(row["sae_name"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(left=0)
    axes.grid(axis="x")
    axes.set_xlabel(f"objective on held-out tokens, lam = {rows[0]['lam']:.3g}")
    return to_svg(figure, "scale-of-objectives", "How far each SAE is from the best dictionaries")


@matplotlib.rc_context(RC)
def quantiles(rows: Sequence[Row], split: str, styles: Mapping[str, Style]) -> str:
    """Draw which share of latents has at most which violation, noise taken off."""
    rows = [row for row in drawn_rows(rows, split, styles) if row["quantiles"]]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    for index, row in enumerate(rows):
        shares = np.linspace(0, 1, len(row["quantiles"]))
        _line(axes, row["quantiles"], shares, row, styles, index, markevery=10)
    largest = max(row["quantiles"][-6] for row in rows)
    axes.set_xlim(0, 1.05 * largest if largest > 0 else 1)
    axes.set_ylim(0, 1)
    axes.grid()
    axes.set_xlabel("excess tangent over E||r|| (0: stationary)")
    axes.set_ylabel("share of latents")
    return to_svg(figure, f"violations-{split}", f"How stationary latents are: {WHERE[split]}")


@matplotlib.rc_context(RC)
def by_rarity(rows: Sequence[Row], split: str, styles: Mapping[str, Style]) -> str:
    """Draw the violation of latents against how common their tokens are."""
    rows = [row for row in drawn_rows(rows, split, styles) if row["median"]]
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    for index, row in enumerate(rows):
        axes.fill_between(row["per_million"], row["low"], row["high"], alpha=0.08, linewidth=0,
                          color=styles[row["sae"]].colour)  # fmt: skip
        _line(axes, row["per_million"], row["median"], row, styles, index)
    log_numbers(axes, y=False)
    axes.set_ylim(bottom=0)
    axes.grid()
    axes.set_xlabel("occurrences of its tokens per million of the pool")
    axes.set_ylabel("excess tangent over E||r||")
    return to_svg(figure, f"rarity-{split}", f"Do latents of rare tokens violate: {WHERE[split]}")


@matplotlib.rc_context(RC)
def identity(rows: Sequence[Row], split: str, styles: Mapping[str, Style]) -> str:
    """Draw cosines of latents against those that their residuals imply, of SAEs with a price."""
    rows = drawn_rows(rows, split, styles)
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    for index, row in enumerate(rows):
        implied = [np.nan if value is None else value for value in row["expected"]]
        _line(axes, row["cosine"], implied, row, styles, index, linestyle="", alpha=0.6)
    axes.plot([-1, 1], [-1, 1], ":", color=INK, linewidth=0.8, label="an optimum")
    axes.grid()
    axes.set_xlabel("cosine of two latents")
    axes.set_ylabel("residual of one along the other / lam")
    return to_svg(figure, "identity", f"What residuals say of cosines: {WHERE[split]}")


@matplotlib.rc_context(RC)
def spectra(rows: Sequence[Row], split: str, styles: Mapping[str, Style]) -> str:
    """Draw which share of what no active direction reaches lies in how many dimensions."""
    rows = drawn_rows(rows, split, styles)
    if not rows:
        return ""
    figure, axes = canvas(3.4)
    for index, row in enumerate(rows):
        ranks = np.arange(1, len(row["cumulative"]) + 1)
        every = max(1, len(ranks) // 8)
        _line(axes, ranks, row["cumulative"], row, styles, index, markevery=every)
    axes.plot([1, len(rows[0]["cumulative"])], [0, 1], ":", color=INK, linewidth=0.8,
              label="no structure")  # fmt: skip
    axes.set_ylim(0, 1)
    axes.grid()
    axes.set_xlabel("dimensions, the largest first")
    axes.set_ylabel("share of the residual")
    return to_svg(figure, "spectra", f"Structure that is left: {WHERE[split]}")


@matplotlib.rc_context(RC)
def split_trees(table: Row) -> str:
    """Draw latents of the narrower SAE and their children in the wider one."""
    trees = table["trees"]
    if not trees:
        return ""
    leaves = sum(len(tree["children"]) for tree in trees)
    figure, axes = canvas(0.8 + 0.22 * leaves)
    at = leaves
    for tree in trees:
        places = [at - 1 - i for i in range(len(tree["children"]))]
        middle = float(np.mean(places))
        axes.text(0, middle, _label(tree["latent"], tree["tokens"]), ha="right", va="center",
                  fontsize=8.5)  # fmt: skip
        for number, (child, place) in enumerate(zip(tree["children"], places, strict=True)):
            axes.plot(
                [0.03, 0.5, 0.97], [middle, place, place], color="#2A7FD0",
                linewidth=0.4 + 2 * child["coverage"], linestyle="-" if number == 0 else "--",
            )  # fmt: skip
            text = f"{_label(child['latent'], child['tokens'])}  {child['cosine']:.2f}"
            axes.text(1, place, text, ha="left", va="center", fontsize=8.5)
        at -= len(tree["children"])
    axes.set_xlim(-1.2, 2.4)
    axes.set_ylim(-0.7, leaves - 0.3)
    axes.axis("off")
    key = f"splits-{table['narrow']}-{table['wide']}"
    return to_svg(figure, key, f"How latents split: {table['narrow']} to {table['wide']}")


def _line(
    axes: Axes, x: Any, y: Any, row: Row, styles: Mapping[str, Style], index: int, **more: Any
) -> None:
    more = {"linestyle": "-", "linewidth": 1.5, "markersize": 4} | more
    dots(axes, x, y, styles[row["sae"]], label=row["sae"], index=index, **more)


def _label(latent: int, tokens: Sequence[str]) -> str:
    return plain(f"{latent} {' '.join(visible(token).strip() for token in tokens[:2])}"[:30])
