import random
from collections import Counter

import numpy as np
import pytest

from ssae.labelled.base import LabelledTexts
from ssae.probe.folds import ambiguous, balanced, folds_of


def groups_of(
    counts: tuple[int, ...], splits: list[str] | None = None, seed: int = 0
) -> LabelledTexts:
    """Documents of the four groups in these numbers, mixed."""
    group = np.repeat(np.arange(4), counts)
    group = np.random.default_rng(seed).permutation(group)
    texts = [f"text {i}" for i in range(len(group))]
    given = np.array(splits or [""] * len(group), dtype=str)
    return LabelledTexts(
        texts, group // 2, group % 2, given, ("nurse", "surgeon"), ("female", "male")
    )


COUNTS = (53, 11, 17, 40)


def published(groups: LabelledTexts, rows: np.ndarray, wanted: list[tuple], seed: int) -> list[int]:
    """The notebook of SHIFT (bib_shift.ipynb): the first n of each group, joined and shuffled."""
    members = [
        [i for i in rows if (groups.label[i], groups.spurious[i]) == group] for group in wanted
    ]
    n = min(len(own) for own in members)
    joined = sum((own[:n] for own in members), [])
    order = list(range(len(joined)))
    random.Random(seed).shuffle(order)
    return [int(joined[i]) for i in order]


@pytest.mark.parametrize("num_folds", [2, 5])
def test_every_document_is_tested_once(num_folds: int):
    groups = groups_of(COUNTS)
    folds = folds_of(groups, num_folds, 0, 1)
    assert len(folds) == num_folds
    tested = Counter(np.concatenate([fold.test for fold in folds]).tolist())
    assert tested == dict.fromkeys(range(len(groups.texts)), 1)
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(len(groups.texts)))


@pytest.mark.parametrize("num_folds", [2, 5])
def test_each_group_is_divided_alike(num_folds: int):
    groups = groups_of(COUNTS)
    for fold in folds_of(groups, num_folds, 0, 1):
        counts = Counter(groups.group[fold.test].tolist())
        for group, count in enumerate(COUNTS):
            assert counts[group] in (count // num_folds, -(-count // num_folds))


def test_documents_stay_in_the_order_of_the_data():
    # The published protocol takes the first of each group.
    for fold in folds_of(groups_of(COUNTS), 5, 0, 1):
        assert fold.train.tolist() == sorted(fold.train)
        assert fold.test.tolist() == sorted(fold.test)


def test_the_seed_decides_the_division():
    groups = groups_of(COUNTS)
    first, again, other = (
        [fold.test.tolist() for fold in folds_of(groups, 5, seed, 1)] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_without_folds_the_split_of_the_data_is_used():
    splits = ["train", "dev", "test", "train"] * 31
    groups = groups_of((40, 30, 25, 29), splits)
    [fold] = folds_of(groups, None, 0, 1)
    assert {splits[i] for i in fold.train} == {"train"}
    assert {splits[i] for i in fold.test} == {"dev", "test"}
    assert len(fold.train) + len(fold.test) == 124


@pytest.mark.parametrize("name", ["train", "test", ""])
def test_data_without_two_splits_is_refused_with_what_there_is(name: str):
    groups = groups_of(COUNTS, [name] * sum(COUNTS))
    with pytest.raises(
        ValueError,
        match=rf"shift\.num_folds=null needs .*'train'.* got splits {name or 'none'}; "
        r"set shift\.num_folds=5",
    ):
        folds_of(groups, None, 0, 1)


def test_a_group_that_is_too_small_is_refused_with_all_counts():
    groups = groups_of((50, 9, 20, 40))
    folds_of(groups, 5, 0, 1)
    with pytest.raises(
        ValueError,
        match=r"at least shift\.min_documents=3 documents in each test set, got "
        r"nurse, female: 10; nurse, male: 2; surgeon, female: 4; surgeon, male: 8; .*"
        r"shift\.num_folds or shift\.min_documents",
    ):
        folds_of(groups, 5, 0, 3)


def test_a_group_without_any_document_in_a_fold_is_refused():
    with pytest.raises(ValueError, match=r"in each test set, got .*nurse, male: 0"):
        folds_of(groups_of((50, 4, 20, 40)), 5, 0, 1)
    with pytest.raises(ValueError, match=r"in each train set, got .*nurse, male: 0"):
        folds_of(groups_of((50, 0, 20, 40)), 5, 0, 1)


def test_the_train_set_of_a_split_must_hold_every_group_too():
    groups = groups_of((20, 20, 20, 20))
    only_test = groups._replace(splits=np.where(groups.group == 2, "test", "train"))
    only_test.splits[:20] = "test"
    with pytest.raises(ValueError, match=r"in each train set, got .*surgeon, female: 0"):
        folds_of(only_test, None, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_ambiguous_and_the_balanced_set_are_those_of_the_published_protocol(seed: int):
    groups = groups_of(COUNTS)
    for fold in folds_of(groups, 3, seed, 1):
        found = ambiguous(groups, fold.train, seed).tolist()
        assert found == published(groups, fold.train, [(0, 0), (1, 1)], seed)
        found = balanced(groups, fold.train, seed).tolist()
        everything = [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert found == published(groups, fold.train, everything, seed)


def test_sets_are_even_and_hold_nothing_else():
    groups = groups_of(COUNTS)
    rows = np.arange(20, 121)
    counts = Counter(groups.group[rows].tolist())
    own = ambiguous(groups, rows, 0)
    assert Counter(groups.group[own].tolist()) == dict.fromkeys((0, 3), min(counts[0], counts[3]))
    own = balanced(groups, rows, 0)
    assert Counter(groups.group[own].tolist()) == dict.fromkeys(range(4), min(counts.values()))
    assert set(own.tolist()) <= set(rows.tolist())
    assert len(set(own.tolist())) == len(own)
