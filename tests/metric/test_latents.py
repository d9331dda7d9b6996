import numpy as np
import pytest
import torch

from ssae.activation.shards import Tokens
from ssae.metric.latents import (
    CONTEXT_TOKENS,
    firing_rate_histogram,
    most_different,
    silence_counts,
    top_contexts,
)
from ssae.sae.relu import ReLUSAE


def test_silent_latents_are_told_apart_by_their_silence_in_training():
    fires = torch.tensor([5, 0, 0, 0, 1, 0])
    since = torch.tensor([900, 101, 100, 5000, 0, 0])
    found = silence_counts(fires, since, dead_after=100)
    assert found == {"num_silent": 4, "num_dead": 2, "num_rare": 2}


def test_without_a_training_record_every_silent_latent_is_too_rare_to_tell():
    found = silence_counts(torch.tensor([0, 3, 0]), torch.zeros(1), dead_after=100)
    assert found == {"num_silent": 2, "num_dead": 0, "num_rare": 2}


@pytest.mark.parametrize("num_tokens", [2, 3, 10, 11, 999, 1000, 12_345, 100_000])
def test_the_histogram_counts_every_latent_that_fired_once(num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    fires = torch.cat([
        torch.tensor([0, 0, 1, num_tokens - 1, num_tokens]),
        torch.randint(0, num_tokens + 1, (50,), generator=generator),
    ])  # fmt: skip
    found = firing_rate_histogram(fires, num_tokens)
    edges, counts = np.array(found["bin_edges"]), found["counts"]
    assert sum(counts) == int((fires > 0).sum())
    rates = np.log10(fires[fires > 0].numpy() / num_tokens)
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = (rates >= low) & ((rates < high) | (index == len(counts) - 1))
        assert counts[index] == inside.sum()
    np.testing.assert_allclose(np.diff(edges), 0.25)
    assert edges[-1] == 0


def test_the_most_different_latents_are_those_of_the_largest_z_score():
    a = torch.tensor([1000, 0, 10, 500, 3])
    b = torch.tensor([1100, 1, 60, 500, 0])
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    scores = [abs(y - x) / (x + y + 1) ** 0.5 for x, y in pairs]
    expected = sorted(range(5), key=lambda j: -scores[j])
    assert most_different(a, b, 5).tolist() == expected == [2, 0, 4, 1, 3]
    assert most_different(a, b, 2).tolist() == [2, 0]
    assert most_different(b, a, 5).tolist() == expected
    assert len(most_different(a, b, 100)) == 5


class Letters:
    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


@pytest.fixture
def identity_sae() -> ReLUSAE:
    """Latent j is the positive part of input j."""
    sae = ReLUSAE(3, 3, l1_coefficient=0.0, auxk_coefficient=0.0, k_aux=1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.W_dec.copy_(torch.eye(3))
    return sae


def make_tokens(num_documents: int, length: int) -> Tokens:
    num_tokens = num_documents * length
    index = torch.arange(num_tokens, dtype=torch.int32)
    x = torch.zeros(num_tokens, 3)
    return Tokens(x, index % 26, index // length, index % length)


def test_contexts_show_the_strongest_peaks_one_per_document(write_tokens, identity_sae):
    tokens = make_tokens(num_documents=6, length=40)
    for document, (offset, value) in enumerate(
        [(20, 1.0), (0, 5.0), (39, 3.0), (7, 4.0), (30, 2.0)]  # document 5 is silent
    ):
        tokens.activations[40 * document + offset, 1] = value
    tokens.activations[40 + 1, 1] = 4.5  # second best of document 1, better than most documents
    sources = [f"source {document}" for document in range(6)]
    activations = write_tokens(tokens, 50).activations
    found = top_contexts(
        identity_sae, activations, torch.tensor([1, 2]), Letters(), sources, num=4, chunk=64
    )
    assert [context["activation"] for context in found[0]] == [5, 4, 3, 2]
    assert [context["source"] for context in found[0]] == [f"source {d}" for d in (1, 3, 2, 4)]
    assert found[1] == []  # a latent that never fires has no context
    for context, (document, offset) in zip(found[0], [(1, 0), (3, 7), (2, 39), (4, 30)],
                                           strict=True):  # fmt: skip
        first = max(0, offset - CONTEXT_TOKENS)
        last = min(39, offset + CONTEXT_TOKENS)
        window = range(40 * document + first, 40 * document + last + 1)
        assert context["peak"] == offset - first
        assert context["activations"][context["peak"]] == context["activation"]
        assert context["activations"] == tokens.activations[list(window), 1].tolist()
        assert context["tokens"] == [chr(ord("a") + index % 26) for index in window]


def test_fewer_documents_than_asked_for_give_fewer_contexts(write_tokens, identity_sae):
    tokens = make_tokens(num_documents=2, length=5)
    tokens.activations[:, 0] = torch.arange(10.0)
    activations = write_tokens(tokens, 100).activations
    found = top_contexts(identity_sae, activations, torch.tensor([0]), Letters(), ["a", "b"])
    assert [(c["source"], c["peak"]) for c in found[0]] == [("b", 4), ("a", 4)]
    assert found[0][1]["tokens"] == list("abcde")
