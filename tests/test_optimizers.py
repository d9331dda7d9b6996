"""Any optimiser by `_target_`, also for SAEs whose parameters have learning rates of their own."""

import functools
from pathlib import Path

import hydra
import lightning
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from ssae.activation.datamodule import ActivationDataModule, Shards, ShardSource
from ssae.activation.order import WindowOrder
from ssae.cli import CONF, study_of
from ssae.objective.erm import ERM
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.jvp import token_losses
from ssae.training.lit_sae import LitSAE

LR, THRESHOLD_LR, NUM_STEPS = 1e-2, 4e-2, 12
FACTORS = [min(1, (step + 1) / 3, (NUM_STEPS - step) / 3) for step in range(NUM_STEPS)]

OPTIMIZERS = {
    "adam_fused": functools.partial(torch.optim.Adam, betas=(0.9, 0.999), fused=True),
    "adamw": functools.partial(torch.optim.AdamW, weight_decay=0.1),
    "adamw_fused": functools.partial(torch.optim.AdamW, weight_decay=0.1, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
}


def make_sae() -> JumpReLUSAE:
    torch.manual_seed(0)
    return JumpReLUSAE(
        4, 12, l0_coefficient=0.1, target_l0=None, bandwidth=0.8, initial_threshold=0.5,
        threshold_lr=THRESHOLD_LR, auxk_coefficient=0.0, k_aux=2,
    )  # fmt: skip


class LearningRates(lightning.Callback):
    """The rates of every group, as used by each step."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def fit(harvest, optimizer) -> tuple[LitSAE, list[list[float]]]:
    rates = LearningRates()
    activations = harvest.activations
    lit = LitSAE(
        make_sae(), ERM(), optimizer=optimizer, lr=LR, warmup_steps=3, decay_share=0.25,
        num_steps=NUM_STEPS, mean_norm=activations.mean_norm, variance=activations.variance,
        dead_after_tokens=10**6, sparsity_warmup_steps=0, screening="exact",
    )  # fmt: skip
    settings = Shards(window_tokens=64, block_tokens=64, read_ahead=False)
    source = ShardSource(activations, settings, batch_size=10, seed=0)
    data = ActivationDataModule(source, NUM_STEPS)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=NUM_STEPS, logger=False, callbacks=[rates],
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lit, data)
    return lit, rates.seen


@pytest.fixture
def harvest(write_tokens, random_tokens):
    return write_tokens(random_tokens(64), 50)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_it_steps_as_a_plain_loop_with_two_groups_would(harvest, name):
    lit, rates = fit(harvest, OPTIMIZERS[name])
    assert rates == [[pytest.approx(lr * f) for lr in (LR, THRESHOLD_LR)] for f in FACTORS]

    sae = make_sae()
    sae.rescale_input(lit.input_scale)
    weights = [p for p in sae.parameters() if p is not sae.threshold]
    plain = {**OPTIMIZERS[name].keywords, "fused": False}
    optimizer = OPTIMIZERS[name].func(
        [{"params": weights}, {"params": [sae.threshold]}], lr=LR, **plain
    )
    order = WindowOrder(64, 10, 0, 64, 64)
    for step, factor in enumerate(FACTORS):
        optimizer.param_groups[0]["lr"] = LR * factor
        optimizer.param_groups[1]["lr"] = THRESHOLD_LR * factor
        x = lit.input_scale * harvest.tokens.activations[order.indices(step)]
        optimizer.zero_grad()
        (token_losses(sae, x).mean() / lit.variance).backward()
        sae.remove_parallel_gradient()
        optimizer.step()
        sae.normalise_decoder()
    before = make_sae()
    before.rescale_input(lit.input_scale)
    for key, weight in sae.state_dict().items():
        torch.testing.assert_close(lit.sae.state_dict()[key], weight, rtol=1e-4, atol=1e-6)
        assert not torch.equal(weight, before.state_dict()[key]), key


@pytest.mark.parametrize(
    ("overrides", "kind", "keywords"),
    [
        ([], torch.optim.Adam, set()),
        (["training.optimizer._target_=torch.optim.AdamW", "+training.optimizer.weight_decay=0.01"],
         torch.optim.AdamW, {"weight_decay"}),
        (["training.optimizer._target_=torch.optim.SGD", "+training.optimizer.momentum=0.9"],
         torch.optim.SGD, {"momentum"}),
        (["training.optimizer._target_=torch.optim.RMSprop"], torch.optim.RMSprop, set()),
    ],
    ids=["adam", "adamw", "sgd", "rmsprop"],
)  # fmt: skip
def test_it_is_chosen_on_the_command_line(overrides, kind, keywords, tmp_path: Path):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*overrides, f"run_dir={tmp_path}"])
    optimizer = study_of(cfg).training.optimizer
    assert optimizer.func is kind
    assert set(optimizer.keywords) == keywords
    assert isinstance(optimizer(make_sae().parameter_groups(1e-3), lr=1e-3), kind)
