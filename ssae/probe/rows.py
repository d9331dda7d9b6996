"""Rows of metrics.json of `ssae shift`, from what all seeds found."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssae.metric.rows import row
from ssae.metric.sums import intervals
from ssae.probe.scores import (
    MEASURES,
    group_accuracy,
    group_draws,
    worst_group_accuracy,
)
from ssae.probe.settings import Shift
from ssae.probe.trial import Evidence, Method, Outcome

SPLIT = "labelled"


def metric_rows(
    shift: Shift,
    evidence: Evidence,
    outcomes: Sequence[Outcome],
    num_draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return accuracies of every method, by group, and what the specialist gains.

    Beside the usual keys a row has those of `Method`, num_ablated (mean number of latents over
    seeds and folds; None where nothing is ablated) and by_seed (values of the seeds, in order).
    """
    methods = list(outcomes[0].correct)
    correct = {m: np.stack([outcome.correct[m] for outcome in outcomes]) for m in methods}
    tested = np.any([outcome.tested for outcome in outcomes], axis=0)
    draws = group_draws(correct, tested, evidence.groups.group, num_draws, seed)
    found: list[dict[str, Any]] = []
    for method in methods:
        number = _mean_number(method, outcomes)
        about = _about(method) | {"num_ablated": number}
        numbers = {(measure, "all"): measure(draws[method]) for measure in MEASURES}
        if method.most is None:
            numbers |= {
                (group_accuracy, name): group_accuracy(draws[method], index)
                for index, name in enumerate(evidence.groups.names)
            }
        for (measure, band), values in numbers.items():
            name = _name(method) if method.most is None else None
            found.append(_row(measure.__name__, values, name, band, evidence, measure, about))
    return found + _gains(shift, methods, draws, evidence)


def _gains(
    shift: Shift, methods: Sequence[Method], draws: Mapping[Any, np.ndarray], evidence: Evidence
) -> list[dict[str, Any]]:
    """Return what the specialist's latents bring beyond the generalist's, by paired resamples."""
    pairs = [
        (method, method._replace(arm=arm), arm)
        for method in methods
        for arm in (shift.generalist, shift.control)
        if method.arm == shift.specialist and method.name != "random"
    ]
    original = Method("original")  # against it: whether the label is still known
    pairs += [(m, original, original.name) for m in methods if m.name == "shift" and m.most is None]
    found = []
    for method, other, reference in pairs:
        if other not in draws:
            continue
        about = _about(method) | {"num_ablated": None, "reference": reference}
        for measure in MEASURES if method.most is None else (worst_group_accuracy,):
            gain = measure(draws[method]) - measure(draws[other])
            name = f"{measure.__name__}_gain"
            found.append(_row(name, gain, None, "all", evidence, measure, about))
    return found


def _row(
    name: str,
    values: np.ndarray,
    sae: str | None,
    band: str,
    evidence: Evidence,
    formula: Any,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a row of the mean over seeds (num_draws + 1, num_seeds)."""
    numbers = intervals(values.mean(1))
    made = row(name, numbers, sae, SPLIT, band, evidence.rows.num_tokens, formula)
    return made | {**about, "by_seed": values[0].tolist()}


def _name(method: Method) -> str:
    """Return what a sweep calls a row: specialist_retrained_0.125, of SHIFT, random_specialist."""
    parts = [None if method.name == "shift" else method.name, method.arm]
    parts.append("retrained" if method.retrained else None)
    parts.append(f"{method.width:g}" if method.width not in (None, 1) else None)
    return "_".join(part for part in parts if part)


def _about(method: Method) -> dict[str, Any]:
    """Return the method's part of a row; `method` is its name."""
    said = method._asdict()
    return {"method": said.pop("name"), **said}


def _mean_number(method: Method, outcomes: Sequence[Outcome]) -> float | None:
    """Return the mean number of latents that a method ablates; None where it ablates none."""
    counts = [n for o in outcomes for n in o.num_ablated.get(method._replace(retrained=False), ())]
    if method.name in ("shift", "random", "feature_skyline", "neuron_skyline"):
        return float(np.mean(counts)) if counts else 0.0
    return None
