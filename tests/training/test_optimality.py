"""The callback that logs how far a dictionary is from stationary while it trains."""

import dataclasses
import functools

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from ssae.activation.shards import Tokens
from ssae.objective.erm import ERM
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE
from ssae.theory import coded, residual_structure, stationarity
from ssae.theory.violations import Violations
from ssae.training.lit_sae import LitSAE
from ssae.training.optimality import MIN_FIRES, NUM_BATCHES, Optimality

BATCH, NUM_STEPS, EVERY = 256, 40, 20
COMMON = {"d_in": 8, "d_sae": 16, "auxk_coefficient": 0.0, "k_aux": 1}


class Same(IterableDataset):
    """One batch over and over: what a look sees is known."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        nothing = torch.zeros(len(self.x), dtype=torch.int32)
        while True:
            yield Tokens(self.x, nothing, nothing, nothing)


def fit(make, folder, callbacks, lr=1e-2, rise=0):
    torch.manual_seed(0)
    x = torch.randn(BATCH, 8)
    lit = LitSAE(
        make(), ERM(), optimizer=functools.partial(torch.optim.Adam), lr=lr, warmup_steps=0,
        decay_share=0.2, num_steps=NUM_STEPS, mean_norm=float(x.norm(dim=1).mean()),
        variance=float((x - x.mean(0)).square().sum(1).mean()), dead_after_tokens=10**6,
        sparsity_warmup_steps=rise, screening="exact",
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=NUM_STEPS, logger=CSVLogger(folder),
        log_every_n_steps=10, callbacks=callbacks, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(Same(x), batch_size=None))
    return lit, x, trainer.logger.experiment.metrics


MAKES = {
    "relu": functools.partial(ReLUSAE, l1_coefficient=0.5, **COMMON),
    "topk": functools.partial(TopKSAE, k=3, **COMMON),
}


class Watch(L.Callback):
    """Keeps the weights that the looks of the last step see."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > NUM_STEPS - NUM_BATCHES:
            sae = module.sae
            x = module.input_scale * batch.activations
            own = coded(x - sae.b_dec, sae(x).latents, sae.W_dec)
            self.seen = [*getattr(self, "seen", []), own]


@pytest.mark.parametrize("name", list(MAKES))
def test_what_is_logged_is_what_the_theory_says_of_these_batches(name, tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr(
        "ssae.training.optimality.log_metrics", lambda _, row, step: rows.append((step, row))
    )
    watch = Watch()
    lit, _, _ = fit(MAKES[name], tmp_path, [Optimality(EVERY), watch])
    assert [step for step, _ in rows] == [EVERY - 1, NUM_STEPS - 1]
    row = rows[-1][1]
    last = watch.seen[-1]
    lam = 0.25 if name == "relu" else 0.0
    # The learning rate has fallen to nearly 0: the batches of the look are nearly the last one.
    found = stationarity(last.x, last.z, last.directions, lam)
    structure = residual_structure(last.x, last.z, last.directions)
    assert row["train/shrinkage_share"] == pytest.approx(structure.shrinkage_share, rel=1e-6)
    counted = found.violation[found.fires * NUM_BATCHES >= MIN_FIRES]
    # Eight times the same tokens: less noise is taken off than is there, so violation bounds it.
    assert 0 < row["train/violation_p50"] <= 1.1 * float(counted.median())


def test_a_penalty_that_still_rises_is_the_price_that_is_paid(tmp_path, monkeypatch):
    prices, result = [], Violations.result
    monkeypatch.setattr(
        Violations, "result", lambda self, lam: prices.append(lam) or result(self, lam)
    )
    fit(MAKES["relu"], tmp_path, [Optimality(EVERY)], rise=2 * NUM_STEPS)
    assert prices == pytest.approx([0.25 * EVERY / 80, 0.25 * NUM_STEPS / 80])


def test_nothing_that_is_trained_changes(tmp_path):
    with_looks, _, _ = fit(MAKES["topk"], tmp_path / "a", [Optimality(EVERY)])
    without, _, _ = fit(MAKES["topk"], tmp_path / "b", [])
    for name, weight in without.sae.named_parameters():
        assert torch.equal(weight, dict(with_looks.sae.named_parameters())[name])


def test_training_writes_the_looks_into_its_log(make_study, tmp_path):
    from ssae.train import train

    study = make_study(tmp_path)
    training = dataclasses.replace(study.training, optimality_every_steps=10)
    logger = functools.partial(CSVLogger, version="")
    study = dataclasses.replace(study, training=training, logger=logger)
    train(study, "first")
    [log] = [path for path in tmp_path.rglob("metrics.csv")]
    text = log.read_text()
    for name in ("violation_p50", "violation_p90", "antipodal_pairs", "shrinkage_share"):
        assert f"train/{name}" in text


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_the_interval_is_checked(make_study, tmp_path, every):
    training = make_study(tmp_path).training
    with pytest.raises(ValueError, match=r"training\.optimality_every_steps must be null or a"):
        dataclasses.replace(training, optimality_every_steps=every)
