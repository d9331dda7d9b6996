import random

import numpy as np
import pytest

from ssae.report.map import plane, words

TOPICS = (
    ["galaxy", "star", "cluster", "redshift", "photon", "plasma", "field", "quantum", "spin"],
    ["goal", "team", "player", "season", "coach", "puck", "league", "referee", "arena"],
)
CHINESE = (
    "星系恒星红移光子等离子体量子引力波黑洞",
    "球队赛季教练冰球联赛裁判体育馆奖杯进门",
)


def sentences(vocabulary, num, *, length=12, between=" ", seed=0) -> list[str]:
    draw = random.Random(seed)
    return [between.join(draw.choices(vocabulary, k=length)) for _ in range(num)]


def agreement(points, labels) -> float:
    """Return the share of the points whose nearest other point has their label."""
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean(labels[distances.argmin(1)] == labels))


@pytest.mark.parametrize(
    ("vocabularies", "between"), [(TOPICS, " "), (CHINESE, "")], ids=["words", "no spaces"]
)
def test_two_topics_lie_apart_in_any_script(vocabularies, between):
    texts = [t for v in vocabularies for t in sentences(v, 60, between=between)]
    labels = np.repeat([0, 1], 60)
    order = np.random.default_rng(0).permutation(120)
    points = plane([texts[i] for i in order])
    assert points.shape == (120, 2)
    assert agreement(points, labels[order]) > 0.95
    assert agreement(points, np.random.default_rng(1).permutation(labels)) < 0.7


def test_the_same_texts_give_the_same_plane():
    texts = sentences(TOPICS[0] + TOPICS[1], 40)
    np.testing.assert_array_equal(plane(texts), plane(texts))


@pytest.mark.parametrize(
    "texts",
    [
        ["a star", "a goal", "a lattice"],
        ["one two three", "four five six", "seven eight nine", "ten eleven twelve"],
        ["same text"] * 20,
        ["same text"] * 20 + ["another one entirely"],
        ["x", "y", "z", "?", "!"],
        ["", " ", "\n", "a word", "\x00\ud800\u202e"],
        ["word", "word word", "word word word", ""],
        ["\ud800 star", "galaxy \udfff", "\ud800\udfff", "\U0001f600\U0001f600"],
    ],
)
def test_any_texts_have_a_place(texts):
    points = plane(texts)
    assert points.shape == (len(texts), 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "two"], ["", "", "", ""]])
def test_where_nothing_can_be_told_apart_all_is_zero(texts):
    np.testing.assert_array_equal(plane(texts), np.zeros((len(texts), 2)))


def test_only_the_beginning_of_a_text_is_read():
    assert words("star " * 200_000) == ["star"] * 800


def test_words_are_those_of_the_script():
    assert words("Étoile de mer") == ["étoile", "de", "mer"]
    assert words("звезда и галактика") == ["звезда", "галактика"]
    assert words("黑洞合并") == ["黑洞", "洞合", "合并"]
    assert sorted(words("the 黑洞 hole")) == ["hole", "the", "黑洞"]
