import shutil
import tracemalloc
import types
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import ssae.tokenise as module
from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact, build
from ssae.language_model.frozen import LanguageModel
from ssae.tokenise import encode, tokenise

TEXTS = ["the mean of a sample", "", "größe ≠ 0\n\ttab", "a normal distribution " * 20, "x"]


class Letters:
    """A tokenizer whose ids are code points; keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts, *, add_special_tokens, return_attention_mask, verbose):
        assert (add_special_tokens, return_attention_mask, verbose) == (False, False, False)
        self.calls.append(texts)
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def dataset(texts: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts})


def save(root: Path, texts: list[str]) -> Artifact:
    def make(folder: Path) -> dict[str, object]:
        dataset(texts).save_to_disk(folder / "documents")
        return {}

    return build(root, "documents", {"texts": texts}, make)


def study(root: Path, lm: LanguageModel, **changes):
    settings = {"language_model": lm, "context_length": 16, "bos": "row", "packing": "packed",
                "artifacts": root}  # fmt: skip
    return types.SimpleNamespace(**(settings | changes))


def texts_of(rows: Rows, lm: LanguageModel) -> dict[int, str]:
    """Return the text of each document, put together from the rows."""
    words: dict[int, list[int]] = {}
    for index in range(len(rows)):
        batch = rows.batch(np.array([index]))
        pairs = zip(batch.document_ids[batch.text], batch.input_ids[batch.text], strict=True)
        for document, token in pairs:
            words.setdefault(int(document), []).append(int(token))
    return {document: lm.tokenizer.decode(tokens) for document, tokens in words.items()}


def test_more_documents_than_a_slice_keep_their_numbers_and_order():
    texts = [chr(ord("a") + index % 26) * (index % 3) for index in range(600)]
    found = list(encode(Letters(), dataset(texts)))
    assert found == [(d, [ord(letter) for letter in text]) for d, text in enumerate(texts)]


def test_the_tokenizer_gets_few_documents_and_characters_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "SLICE_DOCUMENTS", 4)
    monkeypatch.setattr(module, "SLICE_CHARACTERS", 10)
    tokenizer = Letters()
    texts = ["aaa", "bbbb", "cccc", "d", "e" * 30, "f", "g", "h", "i", "j"]
    found = list(encode(tokenizer, dataset(texts)))
    assert tokenizer.calls == [
        ["aaa", "bbbb"], ["cccc", "d"], ["e" * 30], ["f", "g", "h"], ["i", "j"]
    ]  # fmt: skip
    assert [len(tokens) for _, tokens in found] == [len(text) for text in texts]


@pytest.mark.parametrize("max_tokens", [1, 6, 7, 8, 69, 70, 71])
def test_max_tokens_cuts_inside_a_document_and_reads_no_further(max_tokens, monkeypatch):
    monkeypatch.setattr(module, "SLICE_DOCUMENTS", 1)
    tokenizer = Letters()
    found = list(encode(tokenizer, dataset(["abcdefg"] * 10), max_tokens))
    assert sum(len(tokens) for _, tokens in found) == min(70, max_tokens)
    assert len(tokenizer.calls) == len(found) == min(10, -(-max_tokens // 7))


@pytest.mark.parametrize("packing", ["packed", "documents"])
@pytest.mark.parametrize("written_tokens", [1, 50, 2**18])
def test_rows_give_the_text_back_however_often_they_are_written(
    tmp_path, neox, packing, written_tokens, monkeypatch
):
    monkeypatch.setattr(module, "WRITTEN_TOKENS", written_tokens)
    rows = Rows(tokenise(study(tmp_path, neox, packing=packing), save(tmp_path, TEXTS)))
    assert texts_of(rows, neox) == {d: text for d, text in enumerate(TEXTS) if text}
    folder = rows.artifact.path
    arrays = {path.stem: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}
    assert {name: (array.dtype, len(array)) for name, array in arrays.items()} == {
        "input_ids": (np.int32, rows.lengths.sum()),
        "document_ids": (np.int32, rows.lengths.sum()),
        "row_starts": (np.int64, len(rows)),
        "lengths": (np.int32, len(rows)),
        "text_tokens": (np.int32, len(rows)),
        "token_counts": (np.int64, neox.vocab_size),
    }
    assert arrays["row_starts"].tolist() == [0, *rows.lengths.cumsum()[:-1]]


def test_max_tokens_is_of_text(tmp_path, neox):
    documents = save(tmp_path, TEXTS)
    for max_tokens in (1, 15, 16, 40):
        artifact = tokenise(study(tmp_path, neox), documents, max_tokens=max_tokens)
        assert artifact.manifest["num_tokens"] == max_tokens


def test_a_special_token_spelt_out_in_the_text_is_no_text(tmp_path, neox):
    texts = ["the mean<|endoftext|>of a sample"]
    rows = Rows(tokenise(study(tmp_path, neox), save(tmp_path, texts)))
    assert texts_of(rows, neox) == {0: "the meanof a sample"}
    assert rows.artifact.manifest["num_special"] == 2  # the document's bos, and this one
    assert rows.token_counts[0] == 0


def test_only_what_decides_the_tokens_makes_other_rows(tmp_path, neox, neox_folder, llama):
    documents = save(tmp_path, TEXTS)
    first = tokenise(study(tmp_path, neox), documents)
    shutil.copytree(neox_folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"")
    other_weights = LanguageModel(str(tmp_path / "copy"), dtype="bfloat16")
    assert tokenise(study(tmp_path, other_weights), documents) == first
    for changes in ({"context_length": 17}, {"bos": "none"}, {"packing": "documents"}):
        assert tokenise(study(tmp_path, neox, **changes), documents) != first
    assert tokenise(study(tmp_path, llama), documents) != first
    assert tokenise(study(tmp_path, neox), documents, max_tokens=5) != first
    assert tokenise(study(tmp_path, neox), save(tmp_path, TEXTS[:-1])) != first


def test_documents_without_text_are_refused(tmp_path, neox):
    with pytest.raises(ValueError, match="nothing to harvest: the documents hold no token of text"):
        tokenise(study(tmp_path, neox), save(tmp_path, ["", ""]))
    with pytest.raises(ValueError, match="nothing to harvest"):
        tokenise(study(tmp_path, neox), save(tmp_path, ["<|endoftext|>"]))


def test_a_context_of_one_token_is_refused(tmp_path, neox):
    with pytest.raises(ValueError, match="context_length must be at least 2, got 1"):
        tokenise(study(tmp_path, neox, context_length=1), save(tmp_path, TEXTS))


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tmp_path, neox_folder):
    folder = tmp_path / "small"
    shutil.copytree(neox_folder, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"vocab_size": 300', '"vocab_size": 100'))
    lm = LanguageModel(str(folder), device="cpu")
    with pytest.raises(ValueError, match=r"gives id \d+ and .* knows 100 token types"):
        tokenise(study(tmp_path, lm), save(tmp_path, TEXTS))


def test_memory_does_not_grow_with_the_corpus(tmp_path, neox, monkeypatch):
    monkeypatch.setattr(module, "SLICE_DOCUMENTS", 8)
    monkeypatch.setattr(module, "WRITTEN_TOKENS", 2**10)
    peaks, sizes = [], []
    for num_documents in (100, 2000):
        texts = ["the mean of a normal distribution, optional. " * 3] * num_documents
        documents = save(tmp_path, texts)
        tracemalloc.start()
        rows = Rows(tokenise(study(tmp_path, neox, packing="documents"), documents))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(rows.num_tokens * 8)  # what the two large files take
    assert sizes[1] > 2 * peaks[1]
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("packing", ["packed", "documents"])
def test_an_encoder_that_reads_across_documents_is_warned_of(tmp_path, bert, caplog, packing):
    tokenise(study(tmp_path, bert, packing=packing), save(tmp_path, TEXTS))
    warned = "set packing=documents" in caplog.text
    assert warned == (packing == "packed")


def test_an_encoder_starts_rows_with_its_cls_token_and_adds_nothing_else(tmp_path, bert):
    rows = Rows(tokenise(study(tmp_path, bert, packing="documents"), save(tmp_path, TEXTS)))
    assert bert.tokenizer.bos_token_id is None
    ids = rows.batch(np.arange(len(rows))).input_ids
    assert (ids[:, 0] == bert.tokenizer.cls_token_id).all()
    assert not torch.isin(ids, torch.tensor([bert.tokenizer.sep_token_id])).any()
    assert texts_of(rows, bert) == {d: text for d, text in enumerate(TEXTS) if text}
