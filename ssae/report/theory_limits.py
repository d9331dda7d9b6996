"""What theory.html says of many directions, of directions with a price, and of stationarity."""

from collections.abc import Mapping, Sequence

from ssae.theory.limits import NEAR, Limit, Merging

ROUNDING = 1e-6  # of objectives, relative: codes are optimal to their KKT conditions


def limit_sentences(limits: Sequence[Limit]) -> list[str]:
    """Say how near the wide limit comes, and whether every point gets its direction."""
    values = [value for row in limits for value in (row.sae, row.optimal_codes, row.dictionary)]
    is_bound = min(values) >= -ROUNDING
    text = f"the smallest is {min(values):+.2%} from the wide limit: "
    text += f"{'none is below it, as' if is_bound else 'it is below it, which is not'} predicted."
    said = [f"{len(values)} objectives were measured; {text}"]
    for name, column in (
        ("SAEs' directions, with optimal codes,", [row.optimal_codes for row in limits]),
        ("directions fitted without an encoder", [row.dictionary for row in limits]),
    ):
        falls = all(a >= b - ROUNDING for a, b in zip(column, column[1:], strict=False))
        said.append(
            f"From {limits[0].num_directions} to {limits[-1].num_directions} directions, {name} "
            f"come from {column[0]:.1%} to {column[-1]:.1%} above it"
            f"{', ever closer' if falls else ', though not closer at every step'}."
        )
    for row in limits:
        num = len(row.cosines)
        if row.num_directions < num:
            continue
        agrees = row.num_own == num
        said.append(
            f"{row.num_directions} latents for {num} points: {row.num_own} points have a direction "
            f"of their own (cosine above {NEAR:g}; the least is {min(row.cosines):.2f}), "
            f"{'as predicted' if agrees else 'where all were predicted'}; the median code is "
            f"{row.code:.3f} (||x|| - lam), predicted 1."
        )
    return said


def violation_sentences(violations: Mapping[str, Sequence[float]]) -> list[str]:
    """Say how far from stationary each dictionary is."""
    said = [
        f"{name[0].upper()}{name[1:]}: the median violation is {row[1]:.2f}, 90 % are below "
        f"{row[2]:.2f}; at an optimum all are 0."
        for name, row in violations.items()
    ]
    least = min(violations, key=lambda name: violations[name][1])
    return [*said, f"The smaller median is that of the {least}."]


def merging_sentences(merging: Merging) -> list[str]:
    """Say to which directions those gave way that a price left unused."""
    families, used = merging.families, merging.num_used
    num_families = len(set(families))
    # Fewer directions than families have to stand for tokens of several.
    early = [m for m in merging.merges if m.parent >= 0 and used[m.step] >= num_families]
    own = sum(families[merge.child] == families[merge.parent] for merge in early)
    chance = (len(families) / num_families - 1) / (len(families) - 1)
    return [
        f"As gamma grows, {used[0]} directions in use become {used[-1]}. While there were as many "
        f"as families, {num_families}, {len(early)} gave way to others, {own} of them to one of "
        f"their own family (by chance it would be {chance:.0%}). Every solution is within "
        f"{merging.gap:.0e} of the optimum, certified."
    ]
