"""TracIn as a retriever, on a small study whose first arm is trained on the way."""

import copy
import dataclasses
import functools
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.arm import Arm
from ssae.artifact.store import Artifact
from ssae.objective.erm import ERM
from ssae.read_pool import open_pool, read_corpus
from ssae.retrieve import retrieve
from ssae.retriever.base import NO_SEED, UNSEEN, Retriever, Scores
from ssae.retriever.bm25 import BM25
from ssae.retriever.hybrid import Hybrid
from ssae.retriever.random import Random
from ssae.retriever.tracin import TracIn
from ssae.score import read_scores, score
from ssae.study import Study
from ssae.tokenise import tokenise
from ssae.tracin import checkpoints_of, input_scale_of, score_documents
from ssae.train import train

BM = BM25(nearest_seeds=1, k1=1.2, b=0.75, stop_words=None)
TRACIN = TracIn(retriever=BM, oversample=3, budget_tokens=300, arm="first")


@pytest.fixture(scope="module")
def study(make_study, tmp_path_factory) -> Study:
    made = make_study(tmp_path_factory.mktemp("tracin"))
    first = dataclasses.replace(made.arms["first"], num_snapshots=2)
    return dataclasses.replace(made, arms=made.arms | {"first": first})


@pytest.fixture(scope="module")
def scores(study) -> Scores:
    return read_scores(score(study, TRACIN))


@pytest.fixture(scope="module")
def candidates(study) -> Artifact:
    return retrieve(study, BM, 900)


def numbers(retrieved: Artifact) -> list[int]:
    return datasets.Dataset.load_from_disk(retrieved.path / "documents")["document"][:]


def test_candidates_have_the_scores_of_tracin_and_no_others_are_seen(study, scores, candidates):
    trained = train(study, "first")
    assert len(checkpoints_of(trained)) == 2
    expected = score_documents(
        study.language_model, study.hookpoint, checkpoints_of(trained),
        Rows(tokenise(study, read_corpus(study), "seeds")), Rows(tokenise(study, candidates)),
        study.harvest_batch_tokens, input_scale_of(trained),
    )  # fmt: skip
    chosen = numbers(candidates)
    assert 10 < len(chosen) < len(open_pool(study)) / 2
    np.testing.assert_array_equal(scores.values[chosen], expected.astype(np.float32))
    assert np.ptp(expected) > 0
    others = np.setdiff1d(np.arange(len(scores.values)), chosen)
    assert (scores.values[others] == UNSEEN).all()
    assert (scores.seeds[others] == NO_SEED).all()
    first_stage = read_scores(score(study, BM))
    np.testing.assert_array_equal(scores.seeds[chosen], first_stage.seeds[chosen])


def activations(study: Study, rows: Rows) -> list[Tensor]:
    """Each document's activations (num_tokens, d_in), row by row."""
    lm = study.language_model
    special = set(lm.tokenizer.all_special_ids)
    found: list[list[Tensor]] = [[] for _ in range(rows.num_documents)]
    for row in range(rows.num_rows):
        batch = rows.batch(np.array([row]))
        x = lm.capture(batch.input_ids, study.hookpoint)[0]
        for position, token in enumerate(batch.input_ids[0].tolist()):
            if token not in special:
                found[int(batch.document_ids[0, position])].append(x[position])
    return [torch.stack(own).double() for own in found]


def test_scores_are_the_products_of_explicit_gradients(study, scores, candidates):
    trained = train(study, "first")
    scale = input_scale_of(trained)
    assert scale is not None
    seeds = activations(study, Rows(tokenise(study, read_corpus(study), "seeds")))
    documents = activations(study, Rows(tokenise(study, candidates)))

    def gradient(sae: Any, texts: list[Tensor]) -> list[Tensor]:
        losses = []
        for x in texts:
            out = sae.forward_dense(scale * x)
            losses.append(sae.errors(scale * x, out).mean())
        return list(torch.autograd.grad(torch.stack(losses).mean(), list(sae.parameters())))

    expected = torch.zeros(len(documents), dtype=torch.float64)
    for trained_sae, weight in checkpoints_of(trained):
        sae = copy.deepcopy(trained_sae).double().eval()
        sae.rescale_input(scale)
        of_seeds = gradient(sae, seeds)
        for number, x in enumerate(documents):
            own = gradient(sae, [x])
            expected[number] += weight * sum(
                (a * b).sum() for a, b in zip(own, of_seeds, strict=True)
            )
    found = scores.values[numbers(candidates)]
    # float32, and an active latent that rounding exchanges for another.
    assert np.linalg.norm(found - expected.numpy()) < 1e-3 * float(expected.norm())


def test_only_candidates_are_selected_the_best_first(study, scores, candidates):
    retrieved = retrieve(study, TRACIN, 300)
    chosen = numbers(retrieved)
    assert set(chosen) < set(numbers(candidates))
    assert np.array_equal(chosen, np.argsort(-scores.values, kind="stable")[: len(chosen)])
    assert retrieved.manifest["retriever"] == "bm25_tracin"
    everything = retrieve(study, TRACIN, 100_000)
    assert set(numbers(everything)) == set(numbers(candidates))


def arm(retriever: Retriever, init_from: str | None = None) -> Arm:
    return Arm(
        retriever=retriever, budget_tokens=100, init_from=init_from, start="fine_tune",
        objective=ERM(), num_tokens=64, lr=1e-3,
    )  # fmt: skip


OTHER = dataclasses.replace(TRACIN, arm="b")
CHOICES: dict[str, dict[str, Arm]] = {
    "by itself": {"first": arm(TRACIN)},
    "in a hybrid": {
        "first": arm(Hybrid(retrievers={"a": TRACIN, "b": BM}, rank_constant=60)),
    },
    "as a first stage": {"first": arm(dataclasses.replace(OTHER, retriever=TRACIN)), "b": arm(BM)},
    "for the arm it starts from": {"first": arm(BM, "b"), "b": arm(TRACIN)},
    "in a circle": {"first": arm(OTHER), "b": arm(TRACIN)},
    "for no arm at all": {"b": arm(BM)},
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_arm_that_would_wait_for_itself_is_refused(make_study, tmp_path, name: str):
    arms = CHOICES[name] | {"generalist": arm(Random(seed=0, draw="x"))}
    study = make_study(tmp_path, arms=arms, arm="generalist")
    with pytest.raises(ValueError, match=r"got arm='first'; set retriever\.arm=(generalist|b)$"):
        TRACIN.prepare(study)
    assert not list(tmp_path.glob("artifacts/*"))


@pytest.mark.parametrize("wrong", [{"oversample": 0.5}, {"budget_tokens": 0}])
def test_values_out_of_range_are_refused_with_the_override(wrong: dict):
    make = functools.partial(TracIn, retriever=BM, arm="first")
    with pytest.raises(ValueError, match=r"set retriever\.oversample=5"):
        make(**{"oversample": 5, "budget_tokens": 10} | wrong)
