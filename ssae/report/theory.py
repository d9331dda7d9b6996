"""`theory.html`: what theory says of an L1 SAE's directions, beside what L1 SAEs do.

Every sentence about SAEs is made of measured numbers, and says so where they disagree.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from ssae.artifact.replace import write_text
from ssae.report import theory_figures
from ssae.report.page import page_environment
from ssae.report.theory_limits import (
    limit_sentences,
    merging_sentences,
    violation_sentences,
)
from ssae.theory.demonstration import NUM_TOKENS, Absorption, Demonstration, Signed, Widened

SAMPLING_ERRORS = 3
"""A density further than as many standard errors from the predicted one disagrees."""
ANY_SHARE = 0.01  # of tokens; a smaller one counts as none


def write_theory_page(folder: Path, found: Demonstration) -> Path:
    """Write theory.html; return it.

    Args:
        folder: that exists.
        found: what was measured.
    """
    environment = page_environment()
    environment.globals |= {
        "span": span, "roles": roles, "cosines": cosines, "silent": silent, "absorbed": absorbed
    }  # fmt: skip
    page = environment.get_template("theory.html.jinja").render(
        title="What an L1 sparse autoencoder must do, and does",
        found=found,
        said={
            "absorptions": absorption_sentences(found.absorptions),
            "signed": signed_sentences(found.signed, found.num_control),
            "widths": width_sentences(found.widths),
            "limits": limit_sentences(found.limits),
            "merging": merging_sentences(found.merging),
            "violations": violation_sentences(found.violations),
        },
        turned=Markup(theory_figures.turned(found.absorptions)),
        densities=Markup(theory_figures.densities(found.signed)),
        trees=[Markup(theory_figures.tree(rows, s)) for s, rows in found.widths.items()],
        limit=Markup(theory_figures.limit(found.limits, len(found.limits[0].cosines))),
        merging=Markup(theory_figures.merging(found.merging)),
    )
    write_text(folder / "theory.html", page)
    return folder / "theory.html"


def span(values: Iterable[float], digits: int = 2) -> str:
    """Return "low to high", or the one number that both are; "-" for none.

    >>> span([0.7, 0.25]), span([0.301, 0.299]), span([])
    ('0.25 to 0.70', '0.30', '-')
    """
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return "-"
    low, high = (f"{number:.{digits}f}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def roles(toy: Absorption) -> tuple[list[int], list[int]]:
    """Return the children and the held concepts, as predicted."""
    fates = [p.fate for p in toy.predictions]
    children, held = ([c for c, f in enumerate(fates) if f == fate] for fate in ("child", "held"))
    return children, held


def cosines(toy: Absorption, concepts: Iterable[int]) -> list[float]:
    """Return those of the latents nearest to these concepts with the parent, over all SAEs."""
    return [found.cosines[concept] for concept in concepts for found in toy.found]


def silent(toy: Absorption) -> list[float]:
    """Return the shares of children's tokens on which the parent is silent, where it is held."""
    return [share for found in toy.found for share in found.silent if not math.isnan(share)]


def absorption_sentences(absorptions: Sequence[Absorption]) -> list[str]:
    """Say which latents were to turn towards the parent, and which did."""
    said, silences = [], {}
    for toy in absorptions:
        children, held = roles(toy)
        fate, num = toy.predictions[0].fate, len(toy.found)
        text = (
            f"Child rate {toy.child_rate:g}, spread {toy.spread:g}. Predicted: the parent is "
            f"{fate}, {len(children)} concepts turn towards it, {len(held)} are held. Found: "
        )
        if children and held:
            # Half-way between what is predicted of held concepts, 0, and of children.
            bound = min(toy.expected[c] for c in children) / 2
            ours, others = cosines(toy, children), list(map(abs, cosines(toy, held)))
            turned, calm = sum(c > bound for c in ours), sum(c < bound for c in others)
            agrees = turned == len(ours) and calm == len(others)
            off = sum(ours) / len(ours) - sum(toy.expected[c] for c in children) / len(children)
            text += (
                f"{turned} of {len(ours)} children turned (cosine {span(ours)}, predicted "
                f"{span(toy.expected[c] for c in children)}: {off:+.2f} on average) and {calm} of "
                f"{len(others)} held ones did not (at most {max(others):.2f}), "
                f"{'as predicted' if agrees else 'not all as predicted'}; "
            )
        own = sum(found.has_own for found in toy.found)
        agrees = own == (0 if fate == "split" else num)
        text += (
            f"the parent has a latent of its own in {own} of {num} SAEs, "
            f"{'as' if agrees else 'which is not'} predicted."
        )
        said.append(text)
        if fate == "absorbed" and silent(toy):
            silences[toy.spread] = sum(silent(toy)) / len(silent(toy))
    if len(silences) > 1:
        low, high = min(silences), max(silences)
        text = (
            f"Where it has one, the parent's latent is silent on {silences[low]:.0%} of its "
            f"children's tokens at spread {low:g} and on {silences[high]:.0%} at spread {high:g}: "
        )
        more = silences[low] > silences[high]
        said.append(
            text + "with nearly constant activations it falls silent, with spread ones it fires on "
            "to correct the length."
            if more
            else text
            + "that it falls silent with constant activations was expected, and is not so."
        )
    return said


def signed_sentences(signed: Sequence[Signed], num_control: int) -> list[str]:
    """Say whether the signed direction became a pair, and how often its latents fire."""
    held = [row for row in signed if row.pairs]
    verdict = "as predicted" if len(held) == len(signed) else "though it was predicted of all"
    text = f"an antipodal pair in {len(held)} of {len(signed)} SAEs, {verdict}."
    said = [f"The signed direction is held as {text}"]
    for row in held:
        off = max((density - row.expected for density in row.densities), key=abs)
        error = (row.expected * (1 - row.expected) / NUM_TOKENS) ** 0.5
        agrees = abs(off) <= SAMPLING_ERRORS * error
        verdict = "within" if agrees else "more than"
        said.append(
            f"lam {row.lam:g}: predicted are densities of {row.expected:.3f}, found "
            f"{span(row.densities, 3)}; the largest difference, {off:+.3f}, is {verdict} "
            f"{SAMPLING_ERRORS} sampling errors{'' if agrees else ', not as predicted'}."
        )
    pairs = [pair for row in held for pair in row.pairs]
    if pairs:
        joint, least = max(p.joint for p in pairs), min(p.correlation for p in pairs)
        said.append(
            f"Latents of a pair fire together on {joint:.1%} of tokens at most, "
            f"{'as good as never, as predicted' if joint < ANY_SHARE else 'against the prediction'}"
            f"; their difference correlates with x.u by {least:.2f} at least."
        )
    others = sum(row.num_others for row in signed)
    verdict = "as predicted" if others + num_control == 0 else "where none was predicted"
    said.append(
        f"Other directions form {others} antipodal pairs, and activations without a signed "
        f"direction {num_control}, {verdict}."
    )
    return said


def absorbed(row: Widened) -> float:
    """Return the mean absorbed share of the latents that have one; NaN where none has."""
    shares = [split.absorbed for split in row.splits if not math.isnan(split.absorbed)]
    return sum(shares) / len(shares) if shares else math.nan


def width_sentences(widths: Mapping[float, Sequence[Widened]]) -> list[str]:
    """Say how the number of latents per concept grows, and whether parents are absorbed."""
    said = []
    for spread, rows in widths.items():
        means = [sum(row.per_concept) / len(row.per_concept) for row in rows]
        grows = all(a < b for a, b in zip(means, means[1:], strict=False))
        sizes = ", ".join(str(len(row.families)) for row in rows)
        said.append(
            f"Spread {spread:g}: SAEs of {sizes} latents hold "
            f"{', '.join(f'{mean:.1f}' for mean in means)} latents per concept, which "
            f"{'grows with width, as predicted' if grows else 'does not grow at every step'}."
        )
        for row, wider in zip(rows, rows[1:], strict=False):
            num = [len(split.children) for split in wider.splits]
            said.append(
                f"From {len(row.families)} to {len(wider.families)}: {sum(n > 1 for n in num)} of "
                f"{len(num)} latents split, into {sum(num) / max(1, len(num)):.1f} children on "
                "average"
                + (f"; {num.count(0)} have no child" if 0 in num else "")
                + f"; mean absorbed share {span([absorbed(wider)])}."
            )
        excess = [row.excess for row in rows]
        falls = all(a >= b for a, b in zip(excess, excess[1:], strict=False))
        said.append(
            f"The objective is {', '.join(f'{value:.2%}' for value in excess)} above the wide "
            f"limit: {'it falls with width' if falls else 'it does not fall at every step'}."
        )
    return said
