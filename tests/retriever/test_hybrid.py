import dataclasses
from typing import Any

import numpy as np
import pytest

from ssae.retriever.base import NO_SEED, UNSEEN, Retriever, Scores
from ssae.retriever.hybrid import Hybrid
from ssae.retriever.random import Random
from ssae.score import read_scores, score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Retriever):
    """Scores and seeds from a list; None: unseen."""

    given: list
    nearest: list

    def score(self, study, pool, seeds, made) -> Scores:
        values = [UNSEEN if value is None else value for value in self.given]
        return Scores(np.array(values, np.float32), np.array(self.nearest, np.int32))


FIRST = Given(given=[0.9, 0.1, None, 0.5, 0.3], nearest=[0, 0, -1, 1, 1])
SECOND = Given(given=[10, None, None, 30, 20], nearest=[1, -1, -1, 0, 0])


@pytest.fixture
def study(listed, make_study, tmp_path):
    corpus = listed([f"document {i}" for i in range(5)], seeds=["seed one", "seed two"])
    return make_study(tmp_path, corpus=corpus)


def fuse(study, *retrievers: Retriever, rank_constant: float = 60) -> Scores:
    named = {str(number): retriever for number, retriever in enumerate(retrievers)}
    return read_scores(score(study, Hybrid(retrievers=named, rank_constant=rank_constant)))


def test_scores_are_the_sums_of_reciprocal_ranks(study):
    found = fuse(study, FIRST, SECOND)
    by_hand = [1 / 61 + 1 / 63, 1 / 64, UNSEEN, 1 / 62 + 1 / 61, 1 / 63 + 1 / 62]
    np.testing.assert_allclose(found.values, by_hand, rtol=1e-6)
    # Of the retriever that ranks the document best, the first of equals.
    assert found.seeds.tolist() == [0, 0, NO_SEED, 0, 0]
    assert found.seeds.dtype == np.int32


def test_a_small_constant_lets_the_first_ranks_stand_out(study):
    found = fuse(study, FIRST, SECOND, rank_constant=0)
    np.testing.assert_allclose(found.values, [4 / 3, 1 / 4, UNSEEN, 3 / 2, 5 / 6], rtol=1e-6)


def test_only_the_order_of_each_counts(study):
    scaled = dataclasses.replace(FIRST, given=[90, -5, None, 4, 3])
    for one, other in zip(fuse(study, FIRST, SECOND), fuse(study, scaled, SECOND), strict=True):
        assert np.array_equal(one, other)


def test_each_ranking_is_an_artifact_of_its_own(study, tmp_path):
    fuse(study, FIRST, SECOND)
    fuse(study, SECOND, FIRST)
    assert len(list(tmp_path.glob("artifacts/score/*/DONE"))) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"retrievers": {"only": Random(seed=0, draw="x"), "off": None}},
            "two retrievers, got only",
        ),
        ({"retrievers": {}}, "got none"),
        ({"rank_constant": -1}, r"got -1; set retriever\.rank_constant=60"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str):
    settings = {"retrievers": {"a": FIRST, "b": SECOND}, "rank_constant": 60} | wrong
    with pytest.raises(ValueError, match=message):
        Hybrid(**settings)
