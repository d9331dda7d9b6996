from types import SimpleNamespace

import numpy as np
import pytest

from ssae.probe.rows import metric_rows
from ssae.probe.trial import Method, Outcome
from ssae.report.table import find

SHIFT = SimpleNamespace(generalist="first", specialist="second", control=None)
LABEL = np.repeat([0, 0, 1, 1], 10)
SPURIOUS = np.tile(np.repeat([0, 1], 10), 2)
GROUPS = SimpleNamespace(group=2 * LABEL + SPURIOUS, names=["a, x", "a, y", "b, x", "b, y"])
EVIDENCE = SimpleNamespace(groups=GROUPS, rows=SimpleNamespace(num_tokens=400))


def outcome(tested, **correct):
    methods = {Method("original"): correct["original"]}
    for arm in ("first", "second"):
        methods[Method("shift", arm, 1)] = correct[arm]
    return Outcome(methods, tested, {Method("shift", arm, 1): [2, 4] for arm in correct}, {})


def test_a_document_that_every_method_gets_wrong_counts():
    right = np.ones(40, bool)
    right[10:15] = False  # half of one group, in all methods
    rows = metric_rows(
        SHIFT, EVIDENCE, [outcome(np.ones(40, bool), original=right, first=right, second=right)],
        20, 0,
    )  # fmt: skip
    assert find(rows, "worst_group_accuracy", method="original")["value"] == 0.5
    assert find(rows, "label_accuracy", method="shift", arm="first")["value"] == 0.875


def test_documents_that_are_in_no_test_set_do_not_count():
    right, tested = np.zeros(40, bool), np.zeros(40, bool)
    right[::2] = tested[::2] = True
    rows = metric_rows(
        SHIFT, EVIDENCE, [outcome(tested, original=right, first=right, second=right)], 20, 0
    )
    assert find(rows, "worst_group_accuracy", method="original")["value"] == 1


def test_a_gain_is_the_difference_to_the_other_arm_of_the_same_seeds():
    generator = np.random.default_rng(0)
    outcomes = [
        outcome(
            np.ones(40, bool),
            **{name: generator.random(40) < 0.7 for name in ("original", "first", "second")},
        )
        for _ in range(3)
    ]
    rows = metric_rows(SHIFT, EVIDENCE, outcomes, 100, 0)
    first, second = (find(rows, "label_accuracy", method="shift", arm=arm) for arm in
                     ("first", "second"))  # fmt: skip
    gain = find(rows, "label_accuracy_gain", reference="first")
    assert gain["value"] == pytest.approx(second["value"] - first["value"])
    assert gain["low"] < gain["value"] < gain["high"]
    assert second["num_ablated"] == 3
    assert [first["sae"], gain["sae"]] == ["first", None]
