"""From ranking to selection, over pools in memory."""

import logging
import random
from typing import Any

import numpy as np
import pytest

from ssae.corpus.base import normalised
from ssae.retriever.base import NO_SEED, UNSEEN, Scores
from ssae.selection import Selection


class Texts:
    """As much of a Pool as a selection asks for; notes what is fetched."""

    def __init__(self, texts: list[str]) -> None:
        self.all, self.fetched = texts, []

    def fetch(self, ids) -> list[str]:
        self.fetched += np.asarray(ids).tolist()
        return [self.all[i] for i in np.asarray(ids).tolist()]

    def column(self, name: str) -> np.ndarray:
        assert name == "num_characters"
        return np.array([len(text) for text in self.all])


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def take(
    pool: Texts | list[str], budget: int, held_out: list[str] | None = None, scores=None,
    seeds=None, near_duplicates: float | None = 0.8, seed_share: float = 1.0,
):  # fmt: skip
    """The numbers of the documents taken, and the counts of those left out."""
    documents: Any = pool if isinstance(pool, Texts) else Texts(pool)
    num = len(documents.all)
    values = np.arange(num, 0, -1) if scores is None else np.array(scores)
    nearest = np.full(num, NO_SEED) if seeds is None else np.array(seeds)
    selection = Selection(near_duplicates=near_duplicates, seed_share=seed_share)
    given = Scores(values.astype(np.float32), nearest.astype(np.int32))
    chosen, left_out = selection.take(documents, given, held_out or [], budget, count_words)
    assert [one.text for one in chosen] == [documents.all[one.document] for one in chosen]
    assert [one.num_tokens for one in chosen] == count_words([one.text for one in chosen])
    return [one.document for one in chosen], left_out


def prose(seed: int, num_words: int) -> str:
    """Words that hardly repeat."""
    dice = random.Random(seed)
    return " ".join("".join(dice.choices("abcdefghij", k=6)) for _ in range(num_words))


def edited(text: str, num_edits: int, seed: int = 0) -> str:
    """The text with that many characters replaced."""
    dice, characters = random.Random(seed), list(text)
    for place in dice.sample(range(len(text)), num_edits):
        characters[place] = "Z"
    return "".join(characters)


def jaccard(first: str, second: str) -> float:
    sets = [
        {text[i : i + 9] for i in range(max(1, len(text) - 8))}
        for text in (normalised(first), normalised(second))
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize(("budget", "expected"), [(1, 1), (10, 1), (11, 2), (20, 2), (25, 3)])
def test_the_document_that_crosses_the_budget_is_still_taken(budget: int, expected: int):
    chosen, left_out = take([prose(i, 10) for i in range(9)], budget)
    assert chosen == list(range(expected))
    assert left_out == {}


def test_documents_are_taken_best_first_and_unseen_ones_never(caplog):
    pool = [prose(i, 10) for i in range(5)]
    with caplog.at_level(logging.WARNING):
        chosen, _ = take(pool, 100, scores=[0.1, UNSEEN, 0.9, -3, 0.1])
    assert chosen == [2, 0, 4, 3]
    assert "only 40 tokens are selected for budget_tokens=100" in caplog.text
    assert "raise retriever.candidates_per_seed, or retriever.oversample" in caplog.text


def test_a_budget_larger_than_the_pool_takes_all_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        chosen, _ = take([prose(i, 10) for i in range(5)], 51)
    assert chosen == [0, 1, 2, 3, 4]
    assert caplog.text.rstrip().endswith("the pool holds no more")


def test_near_duplicates_of_what_was_taken_are_left_out_and_counted():
    first, other = prose(0, 60), prose(1, 60)
    pool = [first, edited(first, 2), f"  {first.upper()}\n", other, edited(other, 2), prose(2, 60)]
    assert take(pool, 10_000) == ([0, 3, 5], {"num_near_duplicates": 3})
    # The better of two is kept, whichever comes first in the pool.
    assert take(pool[:2], 10_000, scores=[1, 2]) == ([1], {"num_near_duplicates": 1})
    assert take(pool, 10_000, near_duplicates=None) == ([0, 1, 2, 3, 4, 5], {})


@pytest.mark.parametrize(
    "copy",
    [lambda t: t, str.upper, lambda t: t.replace(" ", "\n  "), lambda t: edited(t, 3)],
)
def test_copies_of_what_is_held_out_are_never_taken(copy):
    seed, test = prose(0, 60), prose(1, 60)
    pool = [copy(seed), prose(2, 60), copy(test)]
    assert take(pool, 10_000, [seed, test]) == ([1], {"num_near_held_out": 2})


def test_text_without_spaces_is_compared_too():
    dice = random.Random(0)
    text, other = ("".join(chr(dice.randint(0x4E00, 0x9FA5)) for _ in range(400)) for _ in "ab")
    pool = [text, edited(text, 3), other]
    assert take(pool, 10_000) == ([0, 2], {"num_near_duplicates": 1})


def test_texts_shorter_than_a_shingle_are_compared_whole():
    assert take(["short", "SHORT ", "shore", "x", ""], 100)[0] == [0, 2, 3, 4]


def test_what_is_dropped_is_what_the_jaccard_similarity_says():
    """Estimated by 128 hashes: four standard errors and more on either side of 0.8 are certain."""
    dice = random.Random(0)
    originals = [prose(i, 50) for i in range(60)]
    copies = [
        edited(text, dice.choice([1, 2, 3, 12, 25, 40]), i) for i, text in enumerate(originals)
    ]
    similarities = [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    chosen, _ = take([*originals, *copies], 10**6)
    kept = {number - 60 for number in chosen if number >= 60}
    assert chosen[:60] == list(range(60))
    certain = {True: [], False: []}
    for number, similarity in enumerate(similarities):
        if not 0.6 < similarity < 0.9:
            certain[similarity <= 0.6].append(number)
    assert min(map(len, certain.values())) >= 8
    assert all(number in kept for number in certain[True])
    assert not any(number in kept for number in certain[False])


def test_one_seed_cannot_fill_more_than_its_share_and_one_document():
    texts = [prose(i, 10) for i in range(40)]
    seeds = [0] * 30 + list(range(1, 11))
    chosen, left_out = take(texts, 100, seeds=seeds, seed_share=0.45)
    of = [seeds[document] for document in chosen]
    assert of == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]  # 40 words are below the share of 45, 50 above it
    assert left_out == {"num_over_seed_share": 25}
    assert take(texts, 100, seeds=seeds)[0] == list(range(10))


def test_a_share_leaves_room_for_the_budget_with_few_seeds():
    texts, seeds = [prose(i, 10) for i in range(40)], [0] * 30 + [1] * 5 + [2] * 5
    chosen, _ = take(texts, 100, seeds=seeds, seed_share=0.1)
    assert [seeds[document] for document in chosen] == [0] * 7 + [1] * 3  # two thirds each, at most
    assert take(texts, 100, seeds=[0] * 40, seed_share=0.1)[0] == list(range(10))


def test_documents_without_a_seed_have_no_share():
    chosen, _ = take([prose(i, 10) for i in range(20)], 100, seed_share=0.1)
    assert chosen == list(range(10))


def test_documents_of_a_full_seed_are_not_fetched():
    pool = Texts([prose(i, 3) for i in range(3000)])
    seeds = [0] * 2500 + [1 + i % 10 for i in range(500)]
    chosen, _ = take(pool, 900, seeds=seeds, seed_share=0.5)
    assert sum(seeds[document] == 0 for document in chosen) == 150
    assert len(pool.fetched) == len(set(pool.fetched)) < 1500
    assert chosen[150:] == list(range(2500, 2650))


def test_full_shares_are_the_reason_of_a_selection_that_stays_too_small(caplog):
    with caplog.at_level(logging.WARNING):
        seeds = [0] * 16 + [1, 2, 3, 4]
        chosen, _ = take([prose(i, 10) for i in range(20)], 100, seeds=seeds, seed_share=0.5)
    assert len(chosen) == 9
    assert caplog.text.rstrip().endswith("shares are full; raise selection.seed_share")


def test_full_shares_are_the_reason_also_where_no_document_of_them_was_fetched(caplog):
    """The last document of a fetch fills the share."""
    texts = [prose(i, 4).replace(" ", "") for i in range(600)]  # 256 of them are the first fetch
    pool, seeds = Texts(texts), [0] * 596 + [1, 2, 3, 4]
    with caplog.at_level(logging.WARNING):
        chosen, left_out = take(pool, 512, seeds=seeds, seed_share=0.5)
    assert (len(chosen), len(pool.fetched)) == (260, 260)
    assert left_out == {}
    assert "raise selection.seed_share" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [{"near_duplicates": 0.0}, {"near_duplicates": 1.1}, {"seed_share": 0.0}, {"seed_share": 2.0}],
)
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    [name] = wrong
    with pytest.raises(ValueError, match=rf"set selection\.{name}="):
        Selection(**{"near_duplicates": 0.8, "seed_share": 1.0} | wrong)
