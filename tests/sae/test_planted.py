"""Every architecture, trained as `ssae train` does it, finds a dictionary that is known."""

import functools

import lightning
import pytest
import torch

from ssae.activation.shards import Tokens
from ssae.objective.erm import ERM
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE
from ssae.training.lit_sae import LitSAE

D_IN, NUM_CONCEPTS, ACTIVE = 32, 64, 3
BATCH, NUM_STEPS = 256, 1000
COMMON = {"d_in": D_IN, "d_sae": 128, "auxk_coefficient": 1 / 32, "k_aux": 16}
JUMPRELU = {
    "l0_coefficient": 1.0, "target_l0": float(ACTIVE), "bandwidth": 1.0, "initial_threshold": 2.0,
    "threshold_lr": 1e-2,
}  # fmt: skip

ARCHITECTURES = {
    "relu": functools.partial(ReLUSAE, l1_coefficient=3.0, **COMMON),
    "gated": functools.partial(GatedSAE, l1_coefficient=3.0, **COMMON),
    "topk": functools.partial(TopKSAE, k=ACTIVE, **COMMON),
    "batchtopk": functools.partial(BatchTopKSAE, k=ACTIVE, **COMMON),
    "jumprelu": functools.partial(JumpReLUSAE, **JUMPRELU, **COMMON),
    "matryoshka": functools.partial(MatryoshkaSAE, k=ACTIVE, group_sizes=[64, 64], **COMMON),
}

pytestmark = pytest.mark.slow


class Planted(torch.utils.data.IterableDataset):
    """Tokens of three concepts each, out of 64 directions in 32 dimensions."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(NUM_CONCEPTS, D_IN, generator=self.generator)
        self.concepts = torch.nn.functional.normalize(directions)

    def draw(self, num_tokens: int) -> torch.Tensor:
        chances = torch.rand(num_tokens, NUM_CONCEPTS, generator=self.generator)
        chosen = chances.topk(ACTIVE).indices
        values = torch.rand(num_tokens, ACTIVE, generator=self.generator) + 0.5
        return torch.zeros(num_tokens, NUM_CONCEPTS).scatter(1, chosen, values) @ self.concepts

    def __iter__(self):
        nothing = torch.zeros(BATCH, dtype=torch.int32)
        while True:
            yield Tokens(self.draw(BATCH), nothing, nothing, nothing)


def train(make, seed: int, num_steps: int = NUM_STEPS) -> tuple[SparseAutoencoder, Planted]:
    planted = Planted(seed)
    x = planted.draw(4096)
    torch.manual_seed(seed + 1000)  # with the seed of the concepts it would start at them
    lit = LitSAE(
        make(), ERM(), optimizer=functools.partial(torch.optim.Adam, fused=True), lr=1e-2,
        warmup_steps=50, decay_share=0.2, num_steps=num_steps,
        mean_norm=float(x.norm(dim=1).mean()), dead_after_tokens=20_000,
        variance=float((x - x.mean(0)).square().sum(1).mean()), sparsity_warmup_steps=50,
        screening="exact",
    )  # fmt: skip
    lit.sae.rescale_input(1 / lit.input_scale)  # thresholds are given for scaled activations
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lit, torch.utils.data.DataLoader(planted, batch_size=None))
    return lit.finished_sae(), planted


@functools.cache
def trained(name: str) -> tuple[SparseAutoencoder, Planted]:
    return train(ARCHITECTURES[name], seed=0)


def cosine(sae: SparseAutoencoder, planted: Planted) -> float:
    """The mean over concepts of the cosine to the nearest decoder direction."""
    directions = torch.nn.functional.normalize(sae.W_dec.detach())
    return float((planted.concepts @ directions.T).amax(1).mean())


@torch.no_grad()
def l0(sae: SparseAutoencoder, planted: Planted) -> float:
    return float(sae(planted.draw(8192)).latents.num_active().float().mean())


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_planted_dictionary_is_recovered(name):
    untrained, planted = train(ARCHITECTURES[name], seed=0, num_steps=1)
    assert cosine(untrained, planted) < 0.6
    assert cosine(*trained(name)) > 0.95


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_the_threshold_of_inference_keeps_k_latents_on_average(name):
    assert l0(*trained(name)) == pytest.approx(ACTIVE, rel=0.1)


def test_the_l0_of_jumprelu_falls_as_its_price_rises():
    found = []
    for l0_coefficient in (0.1, 0.5, 2.0):
        own = JUMPRELU | {"target_l0": None, "l0_coefficient": l0_coefficient}
        found.append(l0(*train(functools.partial(JumpReLUSAE, **own, **COMMON), seed=0)))
    assert found[0] > 1.1 * found[1] > 1.21 * found[2]


def test_jumprelu_reaches_a_target_l0():
    assert l0(*trained("jumprelu")) == pytest.approx(ACTIVE, rel=0.1)
    own = JUMPRELU | {"target_l0": 6.0}
    found = l0(*train(functools.partial(JumpReLUSAE, **own, **COMMON), seed=0))
    assert found == pytest.approx(6.0, rel=0.1)
