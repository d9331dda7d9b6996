import numpy as np
import pytest

from ssae.metric.sums import intervals
from ssae.probe import scores


@pytest.fixture
def trial():
    """Two methods, three seeds, 400 documents in four groups of unequal size."""
    generator = np.random.default_rng(0)
    group = generator.choice(4, size=400, p=[0.4, 0.1, 0.1, 0.4])
    chance = np.array([0.95, 0.5, 0.6, 0.9])[group]
    a = generator.random((3, 400)) < chance
    b = a | (generator.random((3, 400)) < 0.3)
    tested = generator.random(400) < 0.9
    return {"a": a & tested, "b": b & tested}, tested, group


def test_the_first_draw_is_the_accuracy_of_each_group(trial):
    correct, tested, group = trial
    draws = scores.group_draws(correct, tested, group, 20, 0)
    for name, right in correct.items():
        for seed in range(3):
            for index in range(4):
                members = tested & (group == index)
                assert draws[name][0, seed, index] == right[seed, members].sum() / members.sum()


def test_measures_are_those_of_the_protocol():
    groups = np.array([0.9, 0.2, 0.4, 0.8])  # (0,0) (0,1) (1,0) (1,1)
    assert scores.label_accuracy(groups) == pytest.approx((0.9 + 0.2 + 0.4 + 0.8) / 4)
    assert scores.ambiguous_accuracy(groups) == pytest.approx(0.85)
    # Where label and attribute differ, being wrong about one is being right about the other.
    assert scores.spurious_accuracy(groups) == pytest.approx((0.9 + 0.8 + 0.6 + 0.8) / 4)
    assert scores.worst_group_accuracy(groups) == 0.2


def test_spurious_accuracy_is_agreement_with_the_attribute():
    generator = np.random.default_rng(1)
    label, spurious = generator.integers(2, size=(2, 4000))
    predicted = np.where(generator.random(4000) < 0.7, spurious, label)
    group, right = 2 * label + spurious, predicted == label
    groups = np.array([right[group == g].mean() for g in range(4)])
    expected = np.mean([(predicted == spurious)[group == g].mean() for g in range(4)])
    assert scores.spurious_accuracy(groups) == pytest.approx(expected)


def test_resamples_are_those_of_a_loop_over_documents_and_seeds(trial):
    """In distribution: means and spreads of the worst group agree with a plain bootstrap."""
    correct, tested, group = trial
    found = scores.worst_group_accuracy(
        scores.group_draws(correct, tested, group, 2000, 0)["a"]
    ).mean(1)[1:]
    generator = np.random.default_rng(5)
    members = [np.flatnonzero(tested & (group == g)) for g in range(4)]
    plain = []
    for _ in range(2000):
        drawn = [generator.choice(own, len(own)) for own in members]
        seeds = generator.integers(3, size=3)
        worst = [min(correct["a"][seed, own].mean() for own in drawn) for seed in seeds]
        plain.append(np.mean(worst))
    assert found.mean() == pytest.approx(np.mean(plain), abs=0.005)
    assert found.std() == pytest.approx(np.std(plain), rel=0.1)


def test_differences_are_paired(trial):
    correct, tested, group = trial
    draws = scores.group_draws({**correct, "same": correct["a"]}, tested, group, 50, 0)
    assert (draws["a"] == draws["same"]).all()
    gain = (scores.label_accuracy(draws["b"]) - scores.label_accuracy(draws["a"])).mean(1)
    apart = scores.label_accuracy(draws["b"]).mean(1).std() ** 2 * 2
    assert gain[1:].var() < apart


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """95 % of the intervals of a known accuracy hold it."""
    generator, held = np.random.default_rng(2), 0
    group = np.repeat(np.arange(4), 60)
    for repeat in range(200):
        # Seeds that agree: what differs are the documents.
        right = np.tile(generator.random(240) < 0.7, (3, 1))
        draws = scores.group_draws({"m": right}, np.ones(240, bool), group, 300, repeat)
        _, low, high = intervals(scores.label_accuracy(draws["m"]).mean(1))
        held += low <= 0.7 <= high
    assert 0.9 <= held / 200 <= 0.99


def test_a_group_without_documents_is_refused(trial):
    correct, tested, group = trial
    with pytest.raises(ValueError, match="group 1 has no tested document"):
        scores.group_draws(correct, tested & (group != 1), group, 5, 0)


@pytest.mark.parametrize(("numbers", "tie"), [((1, -1, 3), True), ((2, 0.1, 3), False)])
def test_a_difference_is_a_tie_when_its_interval_holds_zero(numbers, tie):
    assert scores.is_tie(numbers) == tie
