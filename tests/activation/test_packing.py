import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.packing import POLICIES, pack, separator_id

BOS, EOS = 0, 1


class Letters:
    """A tokenizer whose ids are code points + 2: 0 and 1 are free for bos and eos."""

    def __init__(self, bos_token_id: int | None = BOS, eos_token_id: int | None = EOS) -> None:
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id

    def __call__(self, texts, *, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) + 2 for letter in text] for text in texts]}


def flatten(batches) -> list[tuple[int, int]]:
    """Return (document, token) pairs in reading order, bos tokens included."""
    return [
        pair
        for rows in batches
        for pair in zip(rows.document_ids.ravel().tolist(), rows.input_ids.ravel().tolist(),
                        strict=True)
    ]  # fmt: skip


def reference(texts: list[str], context_length: int, bos: str, max_tokens: int | None) -> list:
    """Pack token by token, with the rules of the module docstring and nothing clever."""
    out: list[tuple[int, int]] = []
    words = [(d, ord(letter) + 2) for d, text in enumerate(texts) for letter in text][:max_tokens]
    last = words[-1][0] if words else -1
    if max_tokens is None or len(words) < max_tokens:
        last = len(texts) - 1
    for document, text in enumerate(texts[: last + 1]):
        marked = False
        if bos != "none" and len(out) % context_length:
            out.append((document, BOS))
            marked = True
        for letter in text[: len([w for w in words if w[0] == document])]:
            row_start = len(out) % context_length == 0
            if bos == "row" and row_start or bos == "document" and row_start and not marked:
                out.append((document, BOS))
            marked = True
            out.append((document, ord(letter) + 2))
    return out


documents = st.lists(st.text("abcdefghij", max_size=25), max_size=12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), st.sampled_from(POLICIES), st.integers(1, 4),
       st.none() | st.integers(0, 60))  # fmt: skip
def test_no_token_is_lost_doubled_or_moved_to_another_document(
    texts, context_length, bos, rows_per_batch, max_tokens
):
    batches = list(pack(Letters(), texts, context_length, bos, rows_per_batch, max_tokens))
    packed = [pair for pair in flatten(batches) if pair[1] != BOS]
    expected = [(d, ord(letter) + 2) for d, text in enumerate(texts) for letter in text]
    assert packed == expected[:max_tokens]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), st.sampled_from(POLICIES), st.integers(1, 4),
       st.none() | st.integers(1, 60))  # fmt: skip
def test_packing_equals_the_token_by_token_reference(
    texts, context_length, bos, rows_per_batch, max_tokens
):
    batches = list(pack(Letters(), texts, context_length, bos, rows_per_batch, max_tokens))
    assert flatten(batches) == reference(texts, context_length, bos, max_tokens)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), st.sampled_from(POLICIES), st.integers(1, 4))
def test_only_the_last_row_is_short_and_only_the_last_batches_are(
    texts, context_length, bos, rows_per_batch
):
    batches = list(pack(Letters(), texts, context_length, bos, rows_per_batch))
    shapes = [rows.input_ids.shape for rows in batches]
    assert shapes == [rows.document_ids.shape for rows in batches]
    full = [shape for shape in shapes if shape[1] == context_length]
    assert shapes[: len(full)] == full
    assert all(num_rows == rows_per_batch for num_rows, _ in full[:-1])
    assert len(shapes) - len(full) <= 1
    if len(shapes) > len(full):
        num_rows, length = shapes[-1]
        assert (num_rows, 0 < length < context_length) == (1, True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9))
def test_every_row_starts_with_bos_when_rows_ask_for_it(texts, context_length):
    for rows in pack(Letters(), texts, context_length, "row", rows_per_batch=3):
        assert (rows.input_ids[:, 0] == BOS).all()


@pytest.mark.parametrize("bos", ["row", "document"])
def test_every_document_starts_with_bos(bos):
    texts = ["abc", "d", "efghijk", "ab", "c" * 20, "d"]
    pairs = flatten(pack(Letters(), texts, 5, bos, rows_per_batch=2))
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        assert next(group)[1] == BOS


def test_bos_none_adds_nothing():
    batches = pack(Letters(), ["abc", "de"], 4, "none", rows_per_batch=1)
    assert [token - 2 for _, token in flatten(batches)] == [ord(letter) for letter in "abcde"]


def test_a_worked_example_of_each_policy():
    def show(bos):
        rows = pack(Letters(), ["abcde", "fg", "h"], 4, bos, rows_per_batch=2)
        return [
            "".join("|" if token == BOS else chr(token - 2) for token in row)
            for batch in rows
            for row in batch.input_ids.tolist()
        ]

    assert show("row") == ["|abc", "|de|", "|fg|", "|h"]
    assert show("document") == ["|abc", "de|f", "g|h"]
    assert show("none") == ["abcd", "efgh"]


def test_token_id_0_is_a_token_and_not_a_missing_one():
    assert separator_id(Letters(bos_token_id=0, eos_token_id=5), "row") == 0
    assert separator_id(Letters(bos_token_id=None, eos_token_id=0), "row") == 0


def test_a_tokenizer_without_bos_lends_its_eos_and_one_without_either_adds_nothing():
    lent = pack(Letters(bos_token_id=None), ["ab"], 4, "row", rows_per_batch=1)
    assert flatten(lent)[0] == (0, EOS)
    neither = Letters(bos_token_id=None, eos_token_id=None)
    bare = pack(neither, ["ab", "c"], 2, "row", rows_per_batch=1)
    assert [token - 2 for _, token in flatten(bare)] == [ord(letter) for letter in "abc"]


def test_more_documents_than_a_tokenizer_batch_keep_their_numbers():
    texts = [chr(ord("a") + index % 26) * (index % 3) for index in range(600)]
    pairs = flatten(pack(Letters(), texts, 7, "row", rows_per_batch=4))
    words = [pair for pair in pairs if pair[1] != BOS]
    assert words == [(d, ord(letter) + 2) for d, text in enumerate(texts) for letter in text]


def test_max_tokens_counts_text_and_not_bos_tokens():
    texts = ["abcdefg"] * 10
    for max_tokens in (1, 6, 7, 8, 69, 70, 71):
        pairs = flatten(pack(Letters(), texts, 4, "row", rows_per_batch=2, max_tokens=max_tokens))
        assert sum(token != BOS for _, token in pairs) == min(70, max_tokens)


def test_ids_come_in_the_types_the_shards_store(make_tokenizer):
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    rows = next(pack(tokenizer, ["the mean of a sample"], 4, "row", rows_per_batch=1))
    assert (rows.input_ids.dtype, rows.document_ids.dtype) == (np.int64, np.int32)


def test_a_real_tokenizer_gives_its_text_back(make_tokenizer):
    tokenizer = make_tokenizer(bos_token="<s>", eos_token="</s>")
    texts = ["the mean of a sample", "größe ≠ 0\n\ttab", "", "x" * 50]
    pairs = flatten(pack(tokenizer, texts, 8, "row", rows_per_batch=2))
    for document, text in enumerate(texts):
        words = [t for d, t in pairs if d == document and t != tokenizer.bos_token_id]
        assert tokenizer.decode(words) == text


def test_a_context_of_one_token_and_an_unknown_policy_are_refused():
    with pytest.raises(ValueError, match="context_length must be at least 2, got 1"):
        next(pack(Letters(), ["a"], 1, "row", rows_per_batch=1))
    with pytest.raises(ValueError, match="bos must be one of row, document, none, got 'always'"):
        next(pack(Letters(), ["a"], 4, "always", rows_per_batch=1))
