import logging

import pytest

from ssae.training.narrow import FEW, NarrowWeights

PATIENCE = 10


def watch(caplog, shares: list[float | None], num_logs: int = 100) -> int:
    """How often it warns of these logs; None: an objective that does not weigh."""
    narrow = NarrowWeights(num_logs)
    with caplog.at_level(logging.WARNING):
        for share in shares:
            row = {"loss": 1.0}
            if share is not None:
                row |= {"effective_sample_size": share, "largest_weight": 0.7}
            narrow.watch(row)
    return len(caplog.records)


def test_weights_that_stay_on_a_few_tokens_are_said_once(caplog):
    assert watch(caplog, [FEW / 2] * (3 * PATIENCE)) == 1
    assert "0.5 % of the tokens" in caplog.text
    assert "objective.tilt" in caplog.text


def test_weights_that_widen_in_between_are_not_said(caplog):
    assert watch(caplog, ([FEW / 2] * (PATIENCE - 1) + [0.5]) * 3) == 0
    assert watch(caplog, [None, 0.2] * PATIENCE) == 0


@pytest.mark.parametrize(("num_logs", "needed"), [(1, 2), (5, 2), (20, 4), (1000, 10)])
def test_a_short_run_says_it_sooner(caplog, num_logs, needed):
    assert watch(caplog, [FEW / 2] * (needed - 1), num_logs) == 0
    assert watch(caplog, [FEW / 2] * needed, num_logs) == 1


def test_weights_that_vanish_are_said_too(caplog):
    narrow = NarrowWeights(100)
    row = {"effective_sample_size": float("nan"), "mean_weight": 0.0, "largest_weight": 0.0}
    with caplog.at_level(logging.WARNING):
        for _ in range(2 * PATIENCE):
            narrow.watch(row)
    [record] = caplog.records
    assert "objective.rho=1" in record.getMessage()
