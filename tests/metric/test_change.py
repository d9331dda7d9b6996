import math

import numpy as np
import pytest
import torch

from ssae.metric import change
from ssae.metric.change import (
    activation_log_ratios,
    decoder_cosines,
    forgetting,
    nearest_cosines,
)


def test_log_ratios_compare_shares_of_all_firings_and_leave_silence_out():
    fires, reference = torch.tensor([3, 0, 10, 0]), torch.tensor([1, 4, 10, 0])
    a, b = ([count + 0.5 for count in counts.tolist()] for counts in (fires, reference))
    expected = [math.log((a[j] / sum(a)) / (b[j] / sum(b))) for j in range(3)]
    assert activation_log_ratios(fires, reference).tolist() == pytest.approx(expected)


def test_twice_the_tokens_are_no_change():
    fires = torch.tensor([1000, 20_000, 3000])
    np.testing.assert_allclose(activation_log_ratios(2 * fires, fires), 0, atol=1e-3)
    assert activation_log_ratios(fires, fires).tolist() == [0, 0, 0]


def test_cosines_equal_those_of_numpy(monkeypatch):
    monkeypatch.setattr(change, "CHUNK", 3)
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 8, 5, generator=generator)
    units = [W.numpy() / np.linalg.norm(W.numpy(), axis=1, keepdims=True) for W in (own, other)]
    every = units[0] @ units[1].T
    np.testing.assert_allclose(decoder_cosines(own, other), every.diagonal(), atol=1e-6)
    np.testing.assert_allclose(nearest_cosines(own, other[:6]), every[:, :6].max(1), atol=1e-6)


def test_a_direction_and_itself_never_exceed_one():
    W = torch.nn.functional.normalize(torch.randn(500, 7), dim=1)
    for found in (decoder_cosines(W, W), nearest_cosines(W, W)):
        assert found.max() <= 1
        np.testing.assert_allclose(found, 1, atol=1e-6)


def test_forgetting_is_how_much_larger_the_fvu_has_become():
    found = forgetting(np.array([0.3, 0.1]), np.array([0.2, 0.2]))
    assert found.tolist() == pytest.approx([0.5, -0.5])
