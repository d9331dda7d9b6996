import dataclasses
import functools
import json

import pytest
import torch
from safetensors.torch import load_file

import ssae
from ssae.activation.shards import Tokens
from ssae.dead_latents.recycle import MIN_OCCURRENCES, candidates, recycle
from ssae.evaluate import evaluate
from ssae.objective.erm import ERM
from ssae.report.contexts import latent_card
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE
from ssae.train import train
from ssae.training.lit_sae import LitSAE

CPU = torch.device("cpu")
D_IN, NUM_CONCEPTS, K = 64, 32, 3
RARE = [NUM_CONCEPTS, NUM_CONCEPTS + 1]
"""Concepts of the subdomain that the generalist has no latent for."""

MAKERS = {
    "topk": (TopKSAE, {"k": K}),
    "batchtopk": (BatchTopKSAE, {"k": K}),
    "matryoshka": (MatryoshkaSAE, {"k": K, "group_sizes": [8, 32]}),
    "relu": (ReLUSAE, {"l1_coefficient": 1.0}),
    "gated": (GatedSAE, {"l1_coefficient": 1.0}),
    "jumprelu": (
        JumpReLUSAE,
        {
            "l0_coefficient": 1.0, "target_l0": None, "bandwidth": 0.1, "initial_threshold": 0.3,
            "threshold_lr": None,
        },
    ),
}  # fmt: skip


def concepts() -> torch.Tensor:
    """(NUM_CONCEPTS + 2, D_IN) directions, as far apart as random ones are."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(NUM_CONCEPTS + 2, D_IN, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=1)


def generalist(kind: str = "topk") -> TopKSAE:
    """It knows all concepts but the two rare ones; 8 more latents never fire."""
    torch.manual_seed(1)
    cls, own = MAKERS[kind]
    sae = cls(D_IN, NUM_CONCEPTS + 8, auxk_coefficient=0.0, k_aux=4, **own)
    with torch.no_grad():
        sae.W_dec[:NUM_CONCEPTS] = concepts()[:NUM_CONCEPTS]
        sae.W_enc_T.copy_(sae.W_dec)
        sae.b_enc.fill_(-0.8)
        sae.b_enc[NUM_CONCEPTS:] = -1000
        if kind in ("batchtopk", "matryoshka"):
            sae.threshold.fill_(0.2)
        if kind == "gated":
            sae.b_mag.copy_(sae.b_enc)
    return sae.eval()


def subdomain(num_tokens: int = 3000) -> Tokens:
    """Tokens of two known concepts; one in 50 has a rare one, and a token type of its own."""
    generator = torch.Generator().manual_seed(5)
    directions, rows, types = concepts(), [], []
    for index in range(num_tokens):
        known = torch.randint(NUM_CONCEPTS, (2,), generator=generator)
        strengths = torch.rand(2, generator=generator) + 2
        row = strengths @ directions[known]
        kind = int(known[0])
        if index % 50 == 0:
            kind = RARE[(index // 50) % 2]
            row = 4 * directions[kind] + 0.3 * row
        rows.append(row)
        types.append(kind)
    noise = 0.02 * torch.randn(num_tokens, D_IN, generator=generator)
    index = torch.arange(num_tokens, dtype=torch.int32)
    return Tokens(torch.stack(rows) + noise, torch.tensor(types).int(), index // 10, index % 10)


@pytest.fixture
def harvest(write_tokens):
    return write_tokens(subdomain(), 700, vocab_size=40)


def state(sae) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in sae.state_dict().items()}


@pytest.mark.parametrize("kind", list(MAKERS))
def test_silent_latents_start_anew_and_the_others_keep_every_bit(harvest, kind):
    sae = generalist(kind)
    before = state(sae)
    with torch.no_grad():
        silent = sae(harvest.tokens.activations).latents.fire_counts() == 0
    assert silent.sum() == 8
    recycled = recycle(sae, harvest.activations, 0.0, CPU)
    assert torch.equal(recycled, silent)
    for name, value in sae.state_dict().items():
        if name == "b_dec" or value.dim() == 0:
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value[~silent], before[name][~silent]), name
        changed = (value[silent] != before[name][silent]).flatten(1) if value.dim() > 1 else None
        assert changed is None or changed.any(1).all(), name
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    assert not sae.training


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_new_latent_fires_on_its_token_and_seldom_elsewhere(harvest, kind):
    sae = generalist(kind)
    x = harvest.tokens.activations
    with torch.no_grad():
        residual = x - sae(x).recon
    recycled = recycle(sae, harvest.activations, 0.0, CPU).nonzero()[:, 0]
    # The token a latent was made from is the one along whose residual it points.
    cosines = torch.nn.functional.normalize(residual, dim=1) @ sae.W_dec[recycled].T
    best, tokens = cosines.max(0)
    torch.testing.assert_close(best, torch.ones(len(recycled)), rtol=0, atol=1e-5)
    assert len(set(tokens.tolist())) == len(recycled)
    with torch.no_grad():
        latents = sae.encode(x)[:, recycled]
    own = latents[tokens, torch.arange(len(recycled))]
    assert (own > 0).all()
    assert (own > 0.5 * residual.norm(dim=1)[tokens]).all()
    rates = (latents > 0).double().mean(0)
    assert (rates < 0.3).all(), rates


def test_new_latents_hold_the_concepts_that_the_generalist_lacks(harvest):
    sae = generalist()
    recycled = recycle(sae, harvest.activations, 0.0, CPU)
    cosines = sae.W_dec @ concepts()[RARE].T
    assert (cosines[~recycled].max(0).values < 0.9).all()
    assert (cosines[recycled].max(0).values > 0.9).all()


def test_candidates_are_of_large_residual_and_the_rarest_types_come_first():
    # type: 0 is frequent, 1 rarer, 2 rarest, 3 too rare to learn from, 4 has small residuals
    token_ids = torch.tensor([0] * 60 + [1] * 20 + [2] * 10 + [3] * 2 + [4] * 8)
    residual_sq = torch.full((100,), 1.0)
    for token, value in {3: 90, 7: 91, 60: 80, 61: 81, 80: 70, 81: 71, 90: 99, 0: 60, 1: 61, 2: 62,
                         92: 0.5}.items():  # fmt: skip
        residual_sq[token] = value
    counts = torch.bincount(token_ids)
    assert counts[3] < MIN_OCCURRENCES <= counts[2]
    found = candidates(residual_sq, token_ids, counts, 8).tolist()
    # One of each type, its largest residual, rarest first; then the second ones; type 3 at the end.
    assert found[:5] == [81, 61, 7, 80, 60]
    assert found[5] == 3
    assert set(found) <= {81, 61, 7, 80, 60, 3, 90, 0, 1, 2}
    assert candidates(residual_sq, token_ids, counts, 10).tolist()[-1] == 90
    assert 92 not in candidates(residual_sq, token_ids, counts, 10).tolist()
    assert sorted(candidates(residual_sq, token_ids, counts, 1000).tolist()) == list(range(100))


def test_more_silent_latents_than_tokens_leave_some_silent(write_tokens):
    few = write_tokens(Tokens(*(column[:5] for column in subdomain(5))), 3, vocab_size=40)
    sae = generalist()
    with torch.no_grad():
        silent = sae(few.tokens.activations).latents.fire_counts() == 0
    assert silent.sum() > 5
    recycled = recycle(sae, few.activations, 0.0, CPU)
    assert 1 <= recycled.sum() <= 5
    assert not recycled[~silent].any()


def test_frozen_latents_are_not_recycled(harvest):
    base, extra = generalist(), generalist()
    with torch.no_grad():
        extra.b_enc.fill_(-1000)
    sae = ResidualSAE(base, extra)
    before = state(base)
    recycled = recycle(sae, harvest.activations, 0.0, CPU)
    assert recycled.tolist() == [False] * base.d_sae + [True] * extra.d_sae
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nothing_silent_changes_nothing(harvest):
    sae = generalist()
    with torch.no_grad():
        sae.W_dec[NUM_CONCEPTS:] = concepts()[:8]
        sae.W_enc_T.copy_(sae.W_dec)
        sae.b_enc.fill_(-0.5)
        sae.k = 40
    before = state(sae)
    assert not recycle(sae, harvest.activations, 0.0, CPU).any()
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def planted_study(make_study, tmp_path, start: str):
    """A study whose second arm starts from a saved SAE in which some latents cannot fire."""
    study = make_study(tmp_path)
    sae = ssae.load(train(study, "first").path)
    with torch.no_grad():
        sae.b_enc[10:20] = -1e4
    ssae.save(sae, tmp_path / "given")
    arm = dataclasses.replace(
        study.arms["second"], init_from=str(tmp_path / "given"), start=start, lr=1e-4
    )
    return dataclasses.replace(study, arms=study.arms | {"second": arm})


def with_rate(study, rate: float):
    training = dataclasses.replace(study.training, recycle_firing_rate=rate)
    return dataclasses.replace(study, training=training)


def test_the_artifact_says_which_latents_were_recycled(make_study, tmp_path):
    made = {
        start: train(planted_study(make_study, tmp_path, start), "second")
        for start in ("fine_tune", "recycle", "residual")
    }
    assert len({artifact.path for artifact in made.values()}) == 3
    rated = {
        start: train(with_rate(planted_study(make_study, tmp_path, start), 0.5), "second")
        for start in ("fine_tune", "recycle")
    }
    assert rated["fine_tune"] == made["fine_tune"]
    assert rated["recycle"].manifest["num_recycled"] > made["recycle"].manifest["num_recycled"]
    flags = {
        start: load_file(artifact.path / "latents.safetensors")["recycled"]
        for start, artifact in made.items()
    }
    assert flags["recycle"][10:20].all()
    assert made["recycle"].manifest["num_recycled"] == flags["recycle"].sum() >= 10
    assert not flags["fine_tune"].any()
    assert not flags["residual"].any()
    given = ssae.load(tmp_path / "given")
    old = ~flags["recycle"]
    for start in ("recycle", "residual"):
        found = ssae.load(made[start].path)
        cosines = torch.cosine_similarity(found.W_dec[:64][old], given.W_dec[old])
        assert (cosines > 0.95).all(), start  # latent j is latent j
    residual = ssae.load(made["residual"].path)
    for name, value in given.state_dict().items():
        assert torch.equal(residual.generalist.state_dict()[name], value), name
    described = json.loads((made["residual"].path / "sae.json").read_text())
    assert described["architecture"] == "residual"


@pytest.mark.parametrize(("start", "origin"), [("recycle", "recycled"), ("residual", "extra")])
def test_the_report_names_latents_that_are_not_those_of_the_generalist(
    make_study, tmp_path, start, origin
):
    study = with_rate(make_study(tmp_path), 0.03)
    arm = dataclasses.replace(study.arms["second"], start=start)
    study = dataclasses.replace(study, arms=study.arms | {"second": arm})
    path = evaluate(study).path
    rows = json.loads((path / "tables.json").read_text())["differing_latents"]
    recycled = load_file(train(study, "second").path / "latents.safetensors")["recycled"]
    found = {row["latent"]: row["origin"] for row in rows}
    assert origin in found.values()
    for latent, name in found.items():
        expected = "extra" if latent >= 64 else "recycled" if recycled[latent] else "kept"
        assert name == expected
    for row in rows:
        new = row["origin"] == "extra"
        assert (row["decoder_cosine"] is None) == new
        assert row["contexts"]["first"] == [] or not new
        card = latent_card(row, {})
        assert card["origin"] == row["origin"]


@pytest.mark.parametrize("start", ["recycle", "residual"])
def test_training_learns_the_missing_concepts_and_keeps_the_known_ones(harvest, start):
    sae = generalist()
    x, directions = harvest.tokens.activations, concepts()
    if start == "recycle":
        kept = ~recycle(sae, harvest.activations, 0.0, CPU)
    else:
        torch.manual_seed(2)
        base = sae
        sae = ResidualSAE(base, TopKSAE(D_IN, 8, k=1, auxk_coefficient=0.0, k_aux=1))
        kept = torch.arange(sae.d_sae) < NUM_CONCEPTS
    lit = lit_of(sae, harvest.activations)
    optimizer = lit.configure_optimizers()["optimizer"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        batch = x[torch.randint(len(x), (256,), generator=generator)]
        loss, *_ = lit.loss(lit.input_scale * batch)
        optimizer.zero_grad()
        loss.backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.normalise_decoder()
    found = lit.finished_sae()
    cosines = found.W_dec.detach() @ directions.T
    new = cosines[~kept][:, RARE].max(0).values
    assert (new > 0.95).all(), new
    known = torch.arange(NUM_CONCEPTS)
    assert (cosines[known, known] > 0.98).all()
    if start == "residual":
        torch.testing.assert_close(cosines[known, known], torch.ones(NUM_CONCEPTS))


def lit_of(sae, activations) -> LitSAE:
    return LitSAE(
        sae, ERM(), optimizer=functools.partial(torch.optim.Adam), lr=3e-3, warmup_steps=0,
        decay_share=0.2, num_steps=300, mean_norm=activations.mean_norm,
        variance=activations.variance, dead_after_tokens=10**6, sparsity_warmup_steps=0,
        screening="exact",
    )  # fmt: skip
