"""Pareto curves of a sweep: what an arm loses, against how many latents it may use.

    x = l0(arm)                                       tokens' mean number of active latents
    y = perplexity_spliced(arm)                       or tail_recall(arm)
    y = perplexity_spliced(arm) / perplexity_spliced(generalist of the same job)

Figures 1, 9, 12 and 13 of arXiv 2411.00743. A curve joins the settings that differ in sparsity
only, each a mean over seeds with the lowest and the highest of them.
"""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ssae.report.table import SAES, ordered
from ssae.sweep.jobs import REFERENCE, Job, Key, sortable
from ssae.sweep.setting import spell_settings

SPARSITY = ("k", "l1_coefficient", "l0_coefficient", "target_l0")
"""Keys of sae= and extra_sae= that decide l0."""
MOST_CURVES = 8
"""In one figure; more would cover each other."""


class Point(NamedTuple):
    """One setting: means over its seeds, and how far those lie apart."""

    x: float
    y: float
    low: float
    high: float


class Curve(NamedTuple):
    """An arm under one setting of everything but sparsity."""

    arm: str
    setting: str
    """What tells it from the other curves of the arm; empty if there is one."""
    points: list[Point]


class _Measured(NamedTuple):
    """One arm in one job."""

    path: tuple[str, str]
    """The key that the curve runs along, and its value."""
    others: dict[str, str]
    seed: str
    x: float
    y: float


def sparsity_key(overrides: Mapping[str, str]) -> str | None:
    """Return the override that changes l0, which a curve runs along; None if there is none.

    >>> sparsity_key({"seed": "0", "objective.tilt": "5", "sae.k": "8"})
    'sae.k'
    """
    for name in SPARSITY:
        for key in overrides:
            parts = key.lstrip("+").split(".")
            if parts[0] in ("sae", "extra_sae") and parts[-1] == name:
                return key
    return None


def curves(jobs: Iterable[Job], y: Key, *, relative: bool = False) -> list[Curve]:
    """Return the curves of one metric against l0 on the same split.

    An arm that an override does not touch has the same numbers under each of its values and is one
    curve; the others are one curve per value.

    Args:
        jobs: finished ones; those without an override that changes l0 are left out.
        y: the metric.
        relative: divide by the same metric of REFERENCE in the same job.

    Returns:
        by arm; of more than MOST_CURVES only those of the studied arm, and none if those are too
        many as well, or if no curve has two points.
    """
    swept = [(job, key) for job in jobs if (key := sparsity_key(job.overrides)) is not None]
    measured: dict[str, list[_Measured]] = collections.defaultdict(list)
    for job, key in swept:
        others = {k: v for k, v in job.setting if k != key}
        for name, split, arm in job.numbers:
            if (name, split) != y or (relative and arm == REFERENCE):
                continue
            below = job.value(y, REFERENCE) if relative else 1.0
            at, value = job.value(("l0", split), arm), job.value(y, arm)
            assert value is not None
            if at is None or not below or not math.isfinite(at + value / below):
                continue
            seed = job.overrides.get("seed", "")
            place = key, job.overrides[key]
            measured[arm].append(_Measured(place, others, seed, at, value / below))
    drawn = [c for arm in ordered(measured, SAES) for c in _of_arm(arm, measured[arm])]
    if len(drawn) > MOST_CURVES:
        drawn = [curve for curve in drawn if curve.arm in {job.outcome["arm"] for job, _ in swept}]
    many = any(len(curve.points) > 1 for curve in drawn)
    return drawn if many and len(drawn) <= MOST_CURVES else []


def _of_arm(arm: str, measured: Sequence[_Measured]) -> list[Curve]:
    telling = _telling_keys(measured)
    groups: dict[tuple[tuple[str, str], ...], list[_Measured]] = collections.defaultdict(list)
    for one in measured:
        own = tuple((key, one.others[key]) for key in telling if key in one.others)
        groups[own].append(one)
    names = spell_settings(list(groups))
    return [
        Curve(arm, name, _points(own)) for name, own in zip(names, groups.values(), strict=True)
    ]


def _telling_keys(measured: Sequence[_Measured]) -> list[str]:
    """Return the overrides, besides seed and sparsity, that the arm's numbers depend on.

    One is left out if jobs that differ in it alone have the same numbers, bit for bit; an arm that
    it does not touch is the same artifact.
    """
    kept = list(dict.fromkeys(key for one in measured for key in one.others))
    for key in tuple(kept):
        fewer = [other for other in kept if other != key]
        values: dict[object, list[tuple[float, float]]] = collections.defaultdict(list)
        for one in measured:
            same = tuple(one.others.get(other) for other in fewer)
            values[one.path, one.seed, same].append((one.x, one.y))
        compared = [numbers for numbers in values.values() if len(numbers) > 1]
        if compared and all(len(set(numbers)) == 1 for numbers in compared):
            kept = fewer
    return kept


def _points(measured: Sequence[_Measured]) -> list[Point]:
    places: dict[tuple[str, str], dict[str, _Measured]] = collections.defaultdict(dict)
    for one in measured:
        places[one.path][one.seed] = one
    points = []
    for _, seeds in sorted(places.items(), key=lambda item: (item[0][0], sortable(item[0][1]))):
        xs, ys = ([getattr(one, axis) for one in seeds.values()] for axis in "xy")
        mean_x, mean_y = (math.fsum(values) / len(values) for values in (xs, ys))
        points.append(Point(mean_x, mean_y, min(ys), max(ys)))
    return points
