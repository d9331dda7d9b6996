"""Which documents a probe is trained and tested on.

    ambiguous   n of each of the two groups in which label and attribute agree: what a biased
                classifier is trained on
    balanced    n of each of the four groups: what an unbiased one would need

n is the smallest of the groups in question; the first n of each are taken, and shuffled (the
protocol of SHIFT, arXiv 2403.19647).
"""

import random
from typing import NamedTuple

import numpy as np

from ssae.labelled.base import LabelledTexts

TRAIN = "train"


class Fold(NamedTuple):
    """A split of the documents."""

    train: np.ndarray
    test: np.ndarray


def folds_of(
    groups: LabelledTexts, num_folds: int | None, seed: int, min_documents: int
) -> list[Fold]:
    """Return the folds; each of the four groups is divided alike.

    Args:
        groups: the documents.
        num_folds: every document is in the test set of one fold; null: the one split of the data.
        seed: of the division.
        min_documents: of each group in each train and test set.

    Raises:
        ValueError: the data has no split, or a group is too small to say anything.
    """
    everything = np.arange(len(groups.texts))
    if num_folds is None:
        is_train = groups.splits == TRAIN
        if is_train.all() or not is_train.any():
            raise ValueError(
                "shift.num_folds=null needs documents of the split 'train' and others, got splits "
                f"{', '.join(sorted(set(groups.splits.tolist()))) or 'none'}; set shift.num_folds=5"
            )
        folds = [Fold(everything[is_train], everything[~is_train])]
    else:
        part = np.empty(len(everything), dtype=np.int64)
        generator = np.random.default_rng(seed)
        for group in range(4):
            own = generator.permutation(np.flatnonzero(groups.group == group))
            part[own] = np.arange(len(own)) % num_folds
        folds = [
            Fold(everything[part != fold], everything[part == fold]) for fold in range(num_folds)
        ]
    for fold in folds:
        for name, rows in fold._asdict().items():
            counts = np.bincount(groups.group[rows], minlength=4)
            if counts.min() < min_documents:
                listed = "; ".join(
                    f"{group}: {n}" for group, n in zip(groups.names, counts, strict=True)
                )
                raise ValueError(
                    f"every group must have at least shift.min_documents={min_documents} documents "
                    f"in each {name} set, got {listed}; add documents, or set a smaller "
                    "shift.num_folds or shift.min_documents"
                )
    return folds


def ambiguous(groups: LabelledTexts, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the ambiguous set among the documents `rows`, shuffled."""
    return _even(groups, rows, (0, 3), seed)


def balanced(groups: LabelledTexts, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the balanced set among the documents `rows`, shuffled."""
    return _even(groups, rows, (0, 1, 2, 3), seed)


def _even(
    groups: LabelledTexts, rows: np.ndarray, wanted: tuple[int, ...], seed: int
) -> np.ndarray:
    members = [rows[groups.group[rows] == group] for group in wanted]
    size = min(map(len, members))
    chosen = np.concatenate([own[:size] for own in members]).tolist()
    random.Random(seed).shuffle(chosen)
    return np.array(chosen)
