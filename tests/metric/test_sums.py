import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.metric.sums import QUANTITIES, DocumentBandSums, intervals, resample

cells = st.lists(
    st.tuples(st.floats(-5, 5), st.integers(0, 3), st.integers(0, 2), st.sampled_from(QUANTITIES)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cells, st.integers(1, 7))
def test_sums_equal_a_loop_however_the_tokens_are_batched(cells, batch):
    sums = DocumentBandSums(num_documents=4, num_bands=3)
    expected = {name: np.zeros((4, 3)) for name in QUANTITIES}
    for quantity in QUANTITIES:
        own = [cell for cell in cells if cell[3] == quantity]
        for start in range(0, len(own), batch):
            values, documents, bands, _ = zip(*own[start : start + batch], strict=True)
            sums.update(
                quantity,
                torch.tensor(values, dtype=torch.float64),
                torch.tensor(documents, dtype=torch.int32),
                torch.tensor(bands),
            )
        for value, document, band, _ in own:
            expected[quantity][document, band] += value
    found = sums.compute()
    for name in QUANTITIES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_float32_values_are_added_in_float64():
    sums = DocumentBandSums(num_documents=1, num_bands=1)
    zeros = torch.zeros(100_000, dtype=torch.int64)
    for _ in range(5):
        sums.update("residual_sq", torch.full((100_000,), 0.1), zeros, zeros)
    exact = 500_000 * float(np.float32(0.1))
    assert sums.compute()["residual_sq"][0, 0] == pytest.approx(exact, rel=1e-12)


def draw_sums(num_documents: int, seed: int = 0, mean: float = 0.3) -> dict[str, np.ndarray]:
    """Documents of uneven length whose tokens have the given mean, two bands."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 20, (num_documents, 2)).astype(float)
    noise = generator.normal(size=(num_documents, 2)) * np.sqrt(tokens)
    return {"tokens": tokens, "active": mean * tokens + noise}


def test_row_0_is_the_set_itself_and_column_0_the_sum_over_bands():
    sums = draw_sums(30)
    found = resample(sums, num_bootstraps=20, seed=1)
    for name, expected in sums.items():
        assert found[name].shape == (21, 3)
        np.testing.assert_allclose(found[name][0], [expected.sum(), *expected.sum(0)], rtol=1e-12)
        np.testing.assert_allclose(found[name][:, 0], found[name][:, 1:].sum(1), rtol=1e-12)


def test_a_resample_draws_as_many_documents_with_replacement():
    num_documents = 5
    powers = 10.0 ** np.arange(num_documents)[:, None]  # digits count the documents drawn
    drawn = resample({"tokens": powers}, num_bootstraps=300, seed=2)["tokens"][1:, 1]
    counts = np.array([[int(digit) for digit in f"{int(value):05d}"] for value in drawn])
    assert (counts.sum(1) == num_documents).all()
    assert counts.max() > 1
    # Each is multinomial: mean 1, variance 1 - 1/n, covariance -1/n.
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.2)
    covariance = np.cov(counts.T)
    np.testing.assert_allclose(np.diag(covariance), 0.8, atol=0.25)
    off_diagonal = covariance[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, -0.2, atol=0.15)


def test_one_seed_gives_every_sae_the_same_resamples_so_differences_are_paired():
    a = draw_sums(40)
    b = {"tokens": a["tokens"], "active": a["active"] + 2 * a["tokens"]}
    first, second = (resample(sums, 100, seed=3) for sums in (a, b))
    np.testing.assert_array_equal(first["tokens"], second["tokens"])
    difference = second["active"] / second["tokens"] - first["active"] / first["tokens"]
    value, low, high = intervals(difference)
    np.testing.assert_allclose(np.stack([value, low, high]), 2, rtol=1e-9)
    _, own_low, own_high = intervals(first["active"] / first["tokens"])
    assert (own_high - own_low > 0.05).all()
    other = resample(a, 100, seed=4)
    assert not np.array_equal(other["tokens"][1:], first["tokens"][1:])


def test_intervals_are_the_quantiles_of_the_resamples():
    draws = np.concatenate([[[50.0]], np.arange(1001.0)[:, None]])
    value, low, high = intervals(draws)
    assert (value[0], low[0], high[0]) == (50, 25, 975)


def test_resamples_without_a_token_are_left_out_of_the_interval():
    resampled = [1.0, np.nan, 2.0, np.inf, 3.0]
    draws = np.array([[7.0, np.nan], *([value, np.nan] for value in resampled)])
    value, low, high = intervals(draws)
    assert value[0] == 7
    assert (low[0], high[0]) == tuple(np.quantile([1.0, 2.0, 3.0], [0.025, 0.975]))
    assert np.isnan([value[1], low[1], high[1]]).all()


def test_the_interval_covers_the_truth_about_95_times_in_100():
    mean, hits, trials = 0.3, 0, 300
    for seed in range(trials):
        drawn = resample(draw_sums(60, seed, mean), 200, seed)
        _, low, high = intervals(drawn["active"][:, 0] / drawn["tokens"][:, 0])
        hits += low < mean < high
    assert 0.89 < hits / trials < 0.99
