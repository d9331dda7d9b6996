"""Tokens for different purposes are of different documents."""

import collections
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssae.activation.reader import Activations
from ssae.activation.split import halves, split_tokens
from ssae.harvest import harvest_for
from ssae.study import Study


@pytest.fixture
def activations(make_study: Callable[..., Study], tmp_path: Path) -> Activations:
    return Activations(harvest_for(make_study(tmp_path), "first"))


def test_no_document_is_on_both_sides(activations: Activations):
    learnt, held = split_tokens(activations, 300, 200, 0)
    assert not set(learnt.document_ids.tolist()) & set(held.document_ids.tolist())
    assert len(learnt.activations) == 300
    assert len(held.activations) == 200
    # They are tokens of the harvest, each at most as often as there (a document may have rows).
    there, *drawn = (
        collections.Counter(map(tuple, torch.stack(part[1:], 1).tolist()))
        for part in (activations.slice(0, 10**6), learnt, held)
    )
    assert drawn[0] + drawn[1] <= there
    for one, other in zip(split_tokens(activations, 300, 200, 0), (learnt, held), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(split_tokens(activations, 300, 200, 1)[0].token_ids, learnt.token_ids)
    everything, rest = split_tokens(activations, 10**6, 0, 0)
    assert len(everything.activations) == len(activations)
    assert not len(rest.activations)


def test_the_halves_are_of_different_documents(activations: Activations):
    tokens = activations.slice(0, 10**6)
    one, other = halves(tokens, 0)
    ids = [set(half.document_ids.tolist()) for half in (one, other)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(tokens.document_ids.tolist())
    assert len(ids[1]) - len(ids[0]) in (0, 1)
    assert len(one.activations) + len(other.activations) == len(tokens.activations)
    # Columns stay together.
    whole, *parts = (
        collections.Counter(zip(map(tuple, t.activations.tolist()), *(c.tolist() for c in t[1:]),
                                strict=True))
        for t in (tokens, one, other)
    )  # fmt: skip
    assert parts[0] + parts[1] == whole
    assert all(torch.equal(a, b) for a, b in zip(halves(tokens, 0)[0], one, strict=True))
    assert set(halves(tokens, 1)[0].document_ids.tolist()) != ids[0]
    single = tokens.document_ids == tokens.document_ids[0]
    nothing, all_of_it = halves(type(tokens)(*(c[single] for c in tokens)), 0)
    assert not len(nothing.activations)
    assert len(all_of_it.activations) == int(single.sum())
