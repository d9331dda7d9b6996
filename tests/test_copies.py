"""Near duplicates against sets of pieces, made by hand."""

import random

import pytest

from ssae.copies import Copies, HeldOut, _pieces
from ssae.corpus.base import normalised


def prose(seed: int, num_words: int) -> str:
    dice = random.Random(seed)
    return " ".join("".join(dice.choices("abcdefgh", k=5)) for _ in range(num_words))


def pieces(text: str) -> set[str]:
    text = normalised(text)
    return {text[i : i + 9] for i in range(max(1, len(text) - 8))}


@pytest.mark.parametrize("length", [1, 3, 30, 200])
def test_the_overlap_is_that_of_the_sets(length: int):
    texts = [prose(seed, num_words) for seed, num_words in enumerate((20, 60, 200, 3))]
    middle = texts[1][100:200]
    for text in (prose(9, length), middle, texts[0] + prose(8, length), texts[2][: 5 * length]):
        expected = max(
            len(pieces(text) & pieces(other)) / min(len(pieces(text)), len(pieces(other)))
            for other in texts
        )
        assert HeldOut(texts).largest_overlap(_pieces(text)) == pytest.approx(expected, abs=1e-9)


def test_nothing_held_out_overlaps_with_nothing():
    assert HeldOut([]).largest_overlap(_pieces("any text")) == 0


@pytest.mark.parametrize(
    "leak",
    [
        lambda text: prose(5, 400) + " " + text + " " + prose(6, 400),
        lambda text: text.upper().replace(" ", "\n  "),
        lambda text: text[200:600],
        lambda text: text[:500] + "X" + text[501:],
    ],
    ids=["inside a page", "other case and space", "a part of it", "an edit"],
)
def test_a_test_document_is_found_wherever_it_is(leak):
    held_out = [prose(seed, 150) for seed in range(3)]
    copies = Copies(0.8, held_out)
    assert copies.reason(0, leak(held_out[1])) == "num_near_held_out"
    assert copies.reason(1, prose(7, 400)) is None


def test_only_what_was_taken_is_resembled():
    copies = Copies(0.8, [])
    text = prose(0, 200)
    assert copies.reason(3, text) is None
    assert copies.reason(4, text) is None
    copies.take(4)
    assert copies.reason(5, text + "!") == "num_near_duplicates"
    assert copies.reason(6, prose(5, 900) + text) is None  # a page may hold what another is


def test_null_lets_everything_through():
    copies = Copies(None, ["abc"])
    assert copies.reason(0, "abc") is None
