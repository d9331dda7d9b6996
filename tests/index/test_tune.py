import numpy as np
import pytest

from ssae.index.tune import Exact, recalls, smallest


def test_exact_similarities_over_blocks_are_those_of_numpy(draw):
    queries, rows = draw(20, seed=1), draw(500)
    exact = Exact(queries, 30)
    for start in range(0, 500, 7):  # smaller than k
        exact.add(rows[start : start + 7])
    exact.add(rows[:0])
    expected = -np.sort(-(queries @ rows.T), axis=1)[:, :30]
    np.testing.assert_allclose(-np.sort(-exact.similarities, axis=1), expected, atol=1e-6)


def test_recall_counts_similarities_and_forgives_ties():
    exact = np.array([[0.9, 0.5, 0.5]])
    for found, recall in (
        ([0.9, 0.5, 0.5], 1), ([0.9, 0.5, 0.4], 2 / 3), ([0.9, 0.5, -np.inf], 2 / 3),
    ):  # fmt: skip
        assert recalls(np.array([found]), exact) == pytest.approx(recall)


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 100, 1000])
def test_about_the_smallest_effort_is_found_in_few_searches(wanted):
    asked = []

    def recall(effort: int) -> np.ndarray:
        asked.append(effort)
        return np.full(50, min(1.0, effort / wanted))

    found = smallest(recall, 1.0, 1, 1000)
    assert wanted <= found <= wanted * 9 / 8
    assert len(asked) <= 20


def test_an_effort_that_only_just_reaches_the_recall_of_its_queries_is_not_enough():
    spread = np.tile([0.0, 0.2], 50) - 0.1
    assert smallest(lambda n: 0.95 + n / 1000 + spread, 0.95, 1, 1000) >= 30  # 3 sd / sqrt(100)


def test_a_recall_out_of_reach_costs_no_more_effort_than_what_still_gains():
    found = smallest(lambda n: np.full(9, min(0.5, n / 100)), 0.95, 1, 10_000)
    assert 49 <= found <= 57
