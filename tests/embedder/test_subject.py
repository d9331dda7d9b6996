import numpy as np
import pytest
import torch

from ssae.artifact.store import describe
from ssae.embedder.subject import SubjectEmbedder

TEXTS = [
    "normal distribution", "", "the mean of a sample " * 30, "x", "gamma poisson variance",
    "caf\u00e9 \u5206\u5e03", "random number",
]  # fmt: skip


def embedder(lm, **changes) -> SubjectEmbedder:
    settings = {"hookpoint": "auto", "max_length": 24, "batch_size_tokens": 60}
    return SubjectEmbedder(language_model=lm, **settings | changes)


@pytest.mark.parametrize("name", ["neox", "llama", "bert", "t5"])
def test_a_vector_is_the_mean_over_the_tokens_of_the_text_alone(name: str, request):
    lm = request.getfixturevalue(name)
    found = embedder(lm).open(None)(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"][:24]
        if not ids:
            assert not vector.any()
            continue
        x = lm.capture(torch.tensor([ids]), lm.resolve("auto"))[0]
        np.testing.assert_allclose(vector, x.float().mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("batch_size_tokens", [24, 10_000])
def test_batches_do_not_change_the_vectors(neox, batch_size_tokens: int):
    expected = embedder(neox).open(None)(TEXTS)
    found = embedder(neox, batch_size_tokens=batch_size_tokens).open(None)(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_batch_holds_more_tokens_than_asked(neox, monkeypatch: pytest.MonkeyPatch):
    sizes, capture = [], type(neox).capture

    def recording(self, input_ids, *rest):
        sizes.append(input_ids.numel())
        return capture(self, input_ids, *rest)

    monkeypatch.setattr(type(neox), "capture", recording)
    embedder(neox).open(None)(TEXTS * 5)
    assert max(sizes) <= 60


def test_no_more_is_read_than_the_model_can(neox):
    longest = neox.max_context_length
    found = embedder(neox, max_length=1000, batch_size_tokens=1000).open(None)(["a " * 300])
    short = embedder(neox, max_length=longest, batch_size_tokens=1000).open(None)(["a " * 300])
    np.testing.assert_array_equal(found, short)


def test_its_identity_is_the_models_and_its_place_and_batches_are_none(neox):
    first, other = embedder(neox), embedder(neox, batch_size_tokens=999)
    assert first.identity() == neox.identity()
    assert describe(first) == describe(other)
    assert describe(first) != describe(embedder(neox, hookpoint="gpt_neox.layers.0"))


@pytest.mark.parametrize("wrong", [{"max_length": 0}, {"max_length": 61}])
def test_values_out_of_range_are_refused_with_the_override(neox, wrong: dict):
    with pytest.raises(ValueError, match=r"set retriever\.embedder\.max_length=256"):
        embedder(neox, **wrong)
