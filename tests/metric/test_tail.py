import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.metric import tail as tail_module
from ssae.metric.frequency import frequency_of
from ssae.metric.represented import RepresentedTypes
from ssae.metric.sums import document_draws, intervals
from ssae.metric.tail import TailError, TailRecall, TailTypes, tail_types

NUM_DOCUMENTS, NUM_TYPES, D_SAE = 9, 15, 12


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=12))
def test_tail_types_are_the_rarest_that_fit_into_half_of_the_tokens(types):
    pool, own = (list(column) for column in zip(*types, strict=True))
    ranks = frequency_of(torch.tensor(pool)).ranks
    expected, mass = [], 0
    for v in sorted(range(len(pool)), key=lambda v: (pool[v], -v)):  # as ranks break ties
        mass += own[v]
        if mass > sum(own) / 2:
            break
        if own[v] >= 5:
            expected.append(v)
    found = tail_types(ranks, torch.tensor(own), np.ones((1, 3)))
    assert found.ids.tolist() == sorted(expected)
    assert found.counts.tolist() == [own[v] for v in sorted(expected)]


def make_tail(ids: list[int], num_bootstraps: int, seed: int = 5) -> TailTypes:
    draws = document_draws(NUM_DOCUMENTS, num_bootstraps, seed).astype(np.int32)
    return TailTypes(np.array(ids, dtype=int), np.full(len(ids), 9), draws)


def occurring(ids: list[int], tokens) -> list[int]:
    """Those that a tail can hold."""
    return [v for v in ids if (tokens.token_ids == v).any()]


def repeated(values: np.ndarray, documents: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The tokens of a resample, written out."""
    return np.concatenate([values[documents == d] for d in range(len(draws)) for _ in
                           range(draws[d])])  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [7, 64])
def test_recall_is_that_of_every_resample_written_out(
    measure, draw_tokens, seed, chunk, monkeypatch
):
    monkeypatch.setattr(tail_module, "CHUNK", chunk)
    tokens = draw_tokens(seed, num_tokens=120)
    tail = make_tail(occurring([2, 5, 6, 9, 11, 14], tokens), num_bootstraps=40)
    found = measure(TailRecall(D_SAE, NUM_TYPES, tail), tokens)
    peaks = np.where((tokens.latents > 0).any(0), tokens.latents.max(0), 0)  # m < 1000
    strong = tokens.latents > peaks / 2
    best = {}
    for v in tail.ids:
        own = tokens.token_ids == v
        f1 = [2 * (own & strong[:, j]).sum() / (own.sum() + strong[:, j].sum() or 1)
              for j in range(D_SAE)]  # fmt: skip
        best[v] = int(np.argmax(f1))
    for draws, value in zip(tail.draws, found, strict=True):
        types, fires = (repeated(a, tokens.document_ids, draws) for a in (tokens.token_ids, strong))
        shares = []
        for v in tail.ids:
            own, firing = types == v, fires[:, best[v]]
            if not own.any():  # as in the whole set
                own, firing = tokens.token_ids == v, strong[:, best[v]]
            shares.append(2 * (own & firing).sum() / (own.sum() + firing.sum()) >= 0.5)
        assert value == pytest.approx(np.mean(shares), rel=1e-12)
    assert len(set(found.tolist())) >= 3


def test_recall_of_the_set_itself_is_the_share_that_is_represented(measure, draw_tokens):
    tokens = draw_tokens(3)
    tail = make_tail([1, 4, 7, 8, 9, 10, 12, 13], num_bootstraps=2)
    found = measure(TailRecall(D_SAE, NUM_TYPES, tail), tokens)
    types = measure(RepresentedTypes(D_SAE, NUM_TYPES), tokens)
    assert found[0] == pytest.approx(types.represented[tail.ids].mean(), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_error_is_the_mean_over_types_of_every_resample_written_out(draw_tokens, seed):
    tokens = draw_tokens(seed, num_tokens=60)
    tail = make_tail(occurring([2, 5, 9, 11, 14], tokens), num_bootstraps=30)
    errors = np.random.default_rng(seed).uniform(0, 5, 60)
    metric = TailError(NUM_TYPES, tail)
    for piece in (slice(0, 17), slice(17, 60)):
        metric.update(*(torch.from_numpy(a[piece]) for a in (errors, *tokens[1:])))
    for draws, value in zip(tail.draws, metric.compute(), strict=True):
        own, types = (repeated(a, tokens.document_ids, draws) for a in (errors, tokens.token_ids))
        whole = {v: errors[tokens.token_ids == v].mean() for v in tail.ids}
        means = [own[types == v].mean() if (types == v).any() else whole[v] for v in tail.ids]
        assert value == pytest.approx(np.mean(means), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_types_of_one_document_each_have_no_spread_of_error(seed):
    """Whatever is drawn, the mean over the tokens of such a type is that of its one document."""
    generator = np.random.default_rng(seed)
    documents = np.repeat(np.arange(NUM_DOCUMENTS), 7)
    types = documents + 3
    tail = make_tail(list(range(3, 3 + NUM_DOCUMENTS)), num_bootstraps=50)
    errors = generator.uniform(0, 5, len(types))
    metric = TailError(NUM_TYPES, tail)
    metric.update(*map(torch.from_numpy, (errors, types, documents)))
    np.testing.assert_allclose(metric.compute(), errors.mean(), rtol=1e-12)


def test_intervals_of_the_error_hold_the_true_mean():
    """Half of the types in two documents each, with larger errors; the others everywhere."""
    num_documents, num_types, hits = 60, 40, 0
    for trial in range(100):
        generator = np.random.default_rng(trial)
        draws = document_draws(num_documents, 200, seed=trial).astype(np.int32)
        tail = TailTypes(np.arange(num_types), np.full(num_types, 20), draws)
        types = np.repeat(np.arange(num_types), 20)
        narrow = types < num_types // 2
        places = generator.integers(0, num_documents, (num_types, 2))
        documents = np.where(
            narrow,
            places[types, generator.integers(0, 2, len(types))],
            generator.integers(0, num_documents, len(types)),
        )
        errors = np.where(narrow, 3.0, 1.0) + generator.normal(0, 1, len(types))
        metric = TailError(num_types, tail)
        metric.update(*map(torch.from_numpy, (errors, types, documents)))
        value, low, high = intervals(metric.compute())
        assert low < value < high
        hits += low <= 2.0 <= high
    assert hits >= 88  # of 100 at 95 %: under it with probability 0.005


def test_one_seed_gives_every_sae_the_same_resamples():
    first, again = (document_draws(30, 20, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, document_draws(30, 20, seed=4))
    assert first[0].tolist() == [1] * 30
    assert first.sum(1).tolist() == [30] * 21


def test_no_tail_type_and_no_firing_give_numbers_or_nan_but_no_error(measure, draw_tokens):
    tokens = draw_tokens(0, num_tokens=40)
    silent = tokens._replace(latents=np.zeros_like(tokens.latents))
    some, none = make_tail([2, 5], num_bootstraps=3), make_tail([], num_bootstraps=3)
    assert measure(TailRecall(D_SAE, NUM_TYPES, some), silent)[0] == 0
    assert np.isnan(measure(TailRecall(D_SAE, NUM_TYPES, none), tokens)).all()
    error = TailError(NUM_TYPES, none)
    error.update(torch.ones(40), *(torch.from_numpy(a) for a in tokens[1:]))
    assert np.isnan(error.compute()).all()
