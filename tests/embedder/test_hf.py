import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from ssae.embedder.hf import HFEncoder

WORDS = [f"w{i}" for i in range(50)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save_encoder(folder: Path, padding_side: str = "right") -> str:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", padding_side=padding_side,
        model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def encoder(name: str, **changes) -> HFEncoder:
    base = HFEncoder(
        name=name, revision=None, max_length=24, prefix="", pooling="mean", batch_size_tokens=100,
        device="cpu",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 40))) for _ in range(count)]


@torch.no_grad()
def one_by_one(name: str, documents: list[str], pooling: str) -> np.ndarray:
    model = AutoModel.from_pretrained(name).eval()
    rows = []
    for document in documents:
        ids = [2, *(len(SPECIAL) + int(word[1:]) for word in document.split()), 3]
        if len(ids) > 24:
            ids = [*ids[:23], 3]
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        rows.append(hidden.mean(dim=0) if pooling == "mean" else hidden[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_give_what_an_unbatched_loop_gives_whatever_the_padding_side(
    tmp_path: Path, pooling: str, side: str
):
    name, pool = save_encoder(tmp_path, side), texts(40)
    embedded = encoder(name, pooling=pooling).embed(pool, pool[:3])
    np.testing.assert_allclose(embedded.pool, one_by_one(name, pool, pooling), atol=1e-5)
    np.testing.assert_allclose(embedded.seeds, embedded.pool[:3], atol=1e-5)
    assert embedded.pool.dtype == np.float32
    assert np.std(embedded.pool, axis=0).min() > 0.01  # the documents differ


def test_no_batch_holds_more_tokens_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    forward = BertModel.forward

    def recording(self, input_ids, **kwargs):
        sizes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", recording)
    encoder(save_encoder(tmp_path)).embed(texts(60), texts(1))
    assert max(rows * columns for rows, columns in sizes) <= 100
    assert len(sizes) < 30  # and they are filled


def test_the_prefix_is_part_of_the_text(tmp_path: Path):
    name = save_encoder(tmp_path)
    plain = encoder(name).embed(["w7 w1 w2"], ["w1"]).pool
    prefixed = encoder(name, prefix="w7 ").embed(["w1 w2"], ["w1"]).pool
    np.testing.assert_allclose(plain, prefixed, atol=1e-6)


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path: Path):
    name = save_encoder(tmp_path)
    torch.save(AutoModel.from_pretrained(name).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load the encoder"):
        encoder(name).embed(["w1"], ["w1"])


@pytest.mark.parametrize("name", ["someone/no-such-encoder", "/no/such/folder"])
def test_an_encoder_out_of_reach_gives_one_clear_error(name: str):
    with pytest.raises(ValueError, match=r"retriever/embedder=tfidf, which downloads nothing"):
        encoder(name).embed(["w1"], ["w1"])


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"at most 32 tokens.*max_length=32"):
        encoder(save_encoder(tmp_path), max_length=64).embed(["w1"], ["w1"])


def test_a_directory_inside_a_package_is_found_and_a_missing_package_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "encoder_package"
    package.mkdir()
    (package / "__init__.py").touch()
    save_encoder(package / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    embedded = encoder("package:encoder_package/model").embed(["w1"], ["w1"])
    assert embedded.pool.shape == (1, 24)
    with pytest.raises(ValueError, match="pip install no-such-package"):
        encoder("package:no_such_package/model").embed(["w1"], ["w1"])


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"max_length": 0}, {"max_length": 101}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"set retriever\.embedder\."):
        encoder("x", **wrong)
