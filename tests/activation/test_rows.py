import itertools
import pickle
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.rows import PACKINGS, POLICIES, Rows, batches_of, cut, separator_id

BOS = 0
TEXTS = [
    "the mean of a sample",
    "a normal distribution has mean and variance: array_like, optional. " * 4,
    "x",
    "",
    "file string path list of the module " * 3,
    "größe ≠ 0\n\ttab",
]

documents = st.lists(st.text("abcdefghij", max_size=25), max_size=12)
policies, packings = st.sampled_from(POLICIES), st.sampled_from(PACKINGS)


def encode(texts: list[str]) -> list[list[int]]:
    """Ids are code points: 0 is free for bos."""
    return [[ord(letter) for letter in text] for text in texts]


def rows_of(texts: list[str], context_length: int, bos: str, packing: str) -> list[list]:
    """Return rows of (document, token) pairs, bos tokens included."""
    separator = None if bos == "none" else BOS
    rows = cut(enumerate(encode(texts)), context_length, separator, bos, packing)
    return [list(zip(row_documents, ids, strict=True)) for ids, row_documents in rows]


def reference(texts: list[str], context_length: int, bos: str) -> list[tuple[int, int]]:
    """Pack token by token, with the rules of the module docstring and nothing clever."""
    out: list[tuple[int, int]] = []
    for document, tokens in enumerate(encode(texts)):
        marked = False
        if bos != "none" and len(out) % context_length:
            out.append((document, BOS))
            marked = True
        for token in tokens:
            row_start = len(out) % context_length == 0
            if bos == "row" and row_start or bos == "document" and row_start and not marked:
                out.append((document, BOS))
            marked = True
            out.append((document, token))
    return out


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), policies, packings)
def test_no_token_is_lost_doubled_or_moved(texts, context_length, bos, packing):
    pairs = itertools.chain.from_iterable(rows_of(texts, context_length, bos, packing))
    expected = [(d, token) for d, tokens in enumerate(encode(texts)) for token in tokens]
    assert [pair for pair in pairs if pair[1] != BOS] == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), policies)
def test_packing_equals_the_token_by_token_reference(texts, context_length, bos):
    rows = rows_of(texts, context_length, bos, "packed")
    assert list(itertools.chain.from_iterable(rows)) == reference(texts, context_length, bos)
    assert all(len(row) == context_length for row in rows[:-1])
    assert all(0 < len(row) <= context_length for row in rows[-1:])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), policies)
def test_documents_have_the_rows_they_have_alone(texts, context_length, bos):
    expected = [
        [(document, token) for _, token in row]
        for document, text in enumerate(texts)
        for row in rows_of([text], context_length, bos, "packed")
    ]
    assert rows_of(texts, context_length, bos, "documents") == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(documents, st.integers(2, 9), packings)
def test_bos_starts_what_the_policy_says_it_starts(texts, context_length, packing):
    for row in rows_of(texts, context_length, "row", packing):
        assert row[0][1] == BOS
    for bos in ("row", "document"):
        pairs = itertools.chain.from_iterable(rows_of(texts, context_length, bos, packing))
        for _, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            assert next(group)[1] == BOS
    if packing == "documents":
        rows = rows_of(texts, context_length, "document", packing)
        num_bos = sum(token == BOS for row in rows for _, token in row)
        assert num_bos == len(list(filter(None, texts)))
    assert all(
        token != BOS
        for row in rows_of(texts, context_length, "none", packing)
        for _, token in row
    )  # fmt: skip


def test_a_worked_example_of_each_policy():
    def show(bos, packing):
        return [
            "".join("|" if token == BOS else chr(token) for _, token in row)
            for row in rows_of(["abcde", "fg", "", "h"], 4, bos, packing)
        ]

    assert show("row", "packed") == ["|abc", "|de|", "|fg|", "|h"]
    assert show("document", "packed") == ["|abc", "de|f", "g||h"]
    assert show("none", "packed") == ["abcd", "efgh"]
    assert show("row", "documents") == ["|abc", "|de", "|fg", "|h"]
    assert show("document", "documents") == ["|abc", "de", "|fg", "|h"]
    assert show("none", "documents") == ["abcd", "e", "fg", "h"]


def tokenizer(bos=None, cls=None, eos=None):
    return types.SimpleNamespace(bos_token_id=bos, cls_token_id=cls, eos_token_id=eos)


def test_token_id_0_is_a_token_and_not_a_missing_one():
    assert separator_id(tokenizer(bos=0, cls=5, eos=6), "row") == 0
    assert separator_id(tokenizer(cls=0, eos=6), "row") == 0
    assert separator_id(tokenizer(eos=0), "document") == 0


def test_a_tokenizer_without_bos_lends_cls_then_eos_then_nothing():
    assert separator_id(tokenizer(cls=5, eos=6), "row") == 5
    assert separator_id(tokenizer(eos=6), "row") == 6
    assert separator_id(tokenizer(), "row") is None
    assert separator_id(tokenizer(bos=1), "none") is None


def test_a_context_of_one_token_and_an_unknown_policy_are_refused():
    with pytest.raises(ValueError, match="context_length must be at least 2, got 1"):
        next(cut([(0, [1])], 1, None, "none", "packed"))
    with pytest.raises(ValueError, match="bos must be one of row, document, none, got 'always'"):
        separator_id(tokenizer(bos=1), "always")


@pytest.fixture(params=PACKINGS)
def rows(request, make_rows, neox) -> Rows:
    return make_rows(neox, TEXTS, 8, "row", request.param)


def expected_rows(lm, packing) -> list[tuple[list[int], list[int]]]:
    encoded = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return list(cut(enumerate(encoded), 8, BOS, "row", packing))


def test_a_batch_holds_the_rows_asked_for_in_that_order_padded_on_the_right(rows, neox):
    packing = "packed" if rows.lengths[:-1].min() == 8 else "documents"
    expected = expected_rows(neox, packing)
    assert rows.num_rows == len(rows) == len(expected)
    for row_ids in ([0], [3, 1, 2], [len(rows) - 1, 0, 0], range(len(rows))):
        row_ids = np.array(row_ids)
        batch = rows.batch(row_ids)
        longest = max(len(expected[i][0]) for i in row_ids)
        shapes = {tuple(t.shape) for t in (batch.input_ids, batch.document_ids, batch.text)}
        assert shapes == {(len(row_ids), longest)}
        assert batch.input_ids.dtype == torch.int64
        assert batch.document_ids.dtype == torch.int32
        lengths = [len(expected[i][0]) for i in row_ids]
        if len(set(lengths)) == 1:
            assert batch.attention_mask is None
        else:
            assert batch.attention_mask.sum(1).tolist() == lengths
            assert batch.attention_mask.dtype == torch.int64
        for line, i in enumerate(row_ids):
            ids, row_documents = expected[i]
            found = batch.input_ids[line].tolist(), batch.document_ids[line].tolist()
            rest = longest - len(ids)
            assert found == (ids + [0] * rest, row_documents + [-1] * rest)
            assert batch.text[line].tolist() == [token != BOS for token in ids] + [False] * rest
        for column, same in zip(batch, rows.batch(torch.from_numpy(row_ids)), strict=True):
            assert (column is None and same is None) or torch.equal(column, same)


def test_counts_are_those_of_the_text(rows, neox):
    ids = [
        token
        for text in TEXTS
        for token in neox.tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    expected = torch.tensor(ids).bincount(minlength=neox.vocab_size)
    assert torch.equal(rows.token_counts, expected)
    assert rows.num_tokens == len(ids) == rows.text_tokens.sum()
    assert rows.num_documents == len(TEXTS)
    manifest = rows.artifact.manifest
    assert manifest["num_special"] == rows.lengths.sum() - len(ids)
    assert manifest["longest"] == rows.lengths.max() == 8
    for index in range(len(rows)):
        assert rows.text_tokens[index] == rows.batch(np.array([index])).text.sum()


def test_rows_are_read_again_after_their_pages_were_given_back(rows):
    before = rows.batch(np.arange(len(rows)))
    rows.forget()
    after = rows.batch(np.arange(len(rows)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # pyright: ignore


def test_rows_sent_to_another_process_are_mapped_there(rows):
    text = pickle.dumps(rows)
    assert rows.lengths.tobytes() not in text
    assert torch.equal(pickle.loads(text).batch([0]).input_ids, rows.batch([0]).input_ids)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def with_lengths(lengths: list[int]) -> Rows:
    return types.SimpleNamespace(lengths=np.array(lengths, dtype=np.int32))  # pyright: ignore


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lengths, st.integers(1, 100), st.randoms(use_true_random=False))
def test_groups_hold_every_row_once_and_fit_the_budget(lengths, batch_tokens, random):
    row_ids = random.sample(range(len(lengths)), k=random.randint(0, len(lengths)))
    groups = batches_of(with_lengths(lengths), np.array(row_ids, dtype=np.int64), batch_tokens)
    flat = [row for group in groups for row in group.tolist()]
    assert flat == sorted(row_ids, key=lambda row: lengths[row])  # stable: ties stay in order
    for group, following in itertools.zip_longest(groups, groups[1:]):
        longest = max(lengths[row] for row in group)
        assert len(group) == 1 or len(group) * longest <= batch_tokens
        if following is not None:  # another row would not have fitted
            assert (len(group) + 1) * lengths[following[0]] > batch_tokens


def test_bucketing_leaves_little_padding_where_lengths_are_skewed():
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3, 1, 2000), 1, 256).astype(int)

    def padded(groups):
        return sum(len(group) * lengths[group].max() for group in groups)

    groups = batches_of(with_lengths(lengths.tolist()), np.arange(2000), 2048)
    plain = np.split(np.arange(2000), range(8, 2000, 8))
    assert padded(groups) < 1.1 * lengths.sum() < 2 * lengths.sum() < padded(plain)
