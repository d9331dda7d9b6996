"""Accuracies by group, with intervals over seeds and documents.

    accuracy_g           share of the group's documents whose class is predicted
    label_accuracy       mean over the four groups: on a balanced set
    ambiguous_accuracy   mean over the two groups in which label and attribute agree
    spurious_accuracy    mean over the groups of agreement with the attribute; 1/2 knows nothing
    worst_group_accuracy the smallest of the four

each of one seed; the value is the mean over seeds. All documents of a group count, where the
published protocol takes the first n of each: the same number in expectation, with less noise.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

K = TypeVar("K")

AMBIGUOUS = np.array([True, False, False, True])
"""Of the groups 2 label + spurious."""


def label_accuracy(groups: np.ndarray) -> np.ndarray:
    """Return the mean over groups (..., 4)."""
    return groups.mean(-1)


def ambiguous_accuracy(groups: np.ndarray) -> np.ndarray:
    """Return the mean over the two groups in which label and attribute agree."""
    return groups[..., AMBIGUOUS].mean(-1)


def spurious_accuracy(groups: np.ndarray) -> np.ndarray:
    """Return how often the predicted class is the one that goes with the attribute's value."""
    return np.where(AMBIGUOUS, groups, 1 - groups).mean(-1)


def worst_group_accuracy(groups: np.ndarray) -> np.ndarray:
    """Return the smallest over groups (..., 4)."""
    return groups.min(-1)


def group_accuracy(groups: np.ndarray, group: int) -> np.ndarray:
    """Return that of one group."""
    return groups[..., group]


MEASURES = (label_accuracy, spurious_accuracy, worst_group_accuracy, ambiguous_accuracy)


def group_draws(
    correct: Mapping[K, np.ndarray],
    tested: np.ndarray,
    group: np.ndarray,
    num_draws: int,
    seed: int,
) -> dict[K, np.ndarray]:
    """Return accuracies by group of resampled seeds and documents: (1 + num_draws, num_seeds, 4).

    Row 0 is the data. Of the others every one draws seeds with replacement, and documents with
    replacement within each group, the same for all methods: differences are paired, and an interval
    holds both for other seeds and for other documents.

    Args:
        correct: {method: (num_seeds, n) bool}.
        tested: (n,) bool: documents that count.
        group: (n,) 0 .. 3.
        num_draws: resamples.
        seed: of the resampling.

    Raises:
        ValueError: a group has no tested document.
    """
    generator = np.random.default_rng(seed)
    keys = list(correct)
    num_seeds = len(correct[keys[0]])
    stacked = np.concatenate([correct[key] for key in keys]).astype(np.float32)
    accuracies = np.empty((1 + num_draws, len(stacked), 4))
    for index in range(4):
        members = np.flatnonzero(tested & (group == index))
        if not len(members):
            raise ValueError(f"group {index} has no tested document")
        share = np.full(len(members), 1 / len(members))
        weights = generator.multinomial(len(members), share, size=num_draws) / len(members)
        weights = np.vstack([share, weights]).astype(np.float32)
        accuracies[:, :, index] = weights @ stacked[:, members].T
        # To the last digit: a share of whole documents.
        accuracies[0, :, index] = stacked[:, members].mean(1, dtype=np.float64)
    chosen = generator.integers(num_seeds, size=(num_draws, num_seeds))
    chosen = np.vstack([np.arange(num_seeds), chosen])
    found = {}
    for place, key in enumerate(keys):
        own = accuracies[:, place * num_seeds : (place + 1) * num_seeds]
        found[key] = np.take_along_axis(own, chosen[:, :, None], axis=1)
    return found


def is_tie(numbers: Sequence[float]) -> bool:
    """Whether the interval of a difference (value, low, high) holds 0."""
    return numbers[1] <= 0 <= numbers[2]
