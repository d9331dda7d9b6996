"""An L1 SAE of toy activations, trained as `ssae train` does it; and a dictionary alone."""

import functools
from collections.abc import Iterator

import lightning as L
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ssae.activation.shards import Tokens
from ssae.objective.erm import ERM
from ssae.sae.relu import ReLUSAE
from ssae.theory.coded import check_tokens
from ssae.theory.codes import optimal_codes
from ssae.theory.toy import Independent
from ssae.theory.turning import statistics_of, turned
from ssae.training.lit_sae import LitSAE

BATCH, NUM_SCALE = 1024, 16_384


def train_l1(
    toy: Independent,
    d_sae: int,
    lam: float,
    *,
    num_steps: int = 3000,
    lr: float = 3e-3,
    seed: int = 0,
) -> ReLUSAE:
    """Return a ReLU SAE trained for P's objective with this lam on fresh tokens of a toy.

    The training loss divides ||r||^2 and the penalty by one variance, with activations scaled to
    mean norm sqrt(d_in): P's lam is l1_coefficient / (2 input_scale).

    Args:
        toy: what draws tokens.
        d_sae: number of latents.
        lam: price of a unit of z, in units of x.
        num_steps: of 1024 tokens.
        lr: of Adam.
        seed: of weights and tokens.
    """
    x = toy.draw(NUM_SCALE, seed + 1).x
    mean_norm = float(x.norm(dim=1).mean())
    torch.manual_seed(seed + 1000)  # with the seed of the directions it would start at them
    sae = ReLUSAE(
        toy.d_in,
        d_sae,
        l1_coefficient=2 * lam * toy.d_in**0.5 / mean_norm,
        auxk_coefficient=0.0,
        k_aux=1,
    )
    lit = LitSAE(
        sae, ERM(), optimizer=functools.partial(torch.optim.Adam, fused=True), lr=lr,
        warmup_steps=100, decay_share=0.5, num_steps=num_steps, mean_norm=mean_norm,
        variance=float((x - x.mean(0)).square().sum(1).mean()), dead_after_tokens=10**9,
        sparsity_warmup_steps=100, screening="exact",
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(_Stream(toy, seed + 2), batch_size=None))
    trained = lit.finished_sae()
    assert isinstance(trained, ReLUSAE)
    return trained


def fit_dictionary(
    x: Tensor, num_directions: int, lam: float, *, num_rounds: int = 100, seed: int = 0
) -> Tensor:
    """Return directions (num_directions, d_in) fitted to P's objective on x, without an encoder.

    Optimal codes and, for these, the best directions, in turn (turning.py). Every step lowers the
    objective; where it ends depends on the random directions it begins with.

    Args:
        x: (n, d_in), less b_dec.
        num_directions: how many.
        lam: price of a unit of z.
        num_rounds: of codes and directions.
        seed: of the directions it begins with.
    """
    x = check_tokens(x, x.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    D = torch.randn(num_directions, x.shape[1], generator=generator, dtype=x.dtype)
    D, z = torch.nn.functional.normalize(D), None
    for _ in range(num_rounds):
        z = optimal_codes(x, D, lam, initial=z, tolerance=1e-4, max_steps=300).z
        statistics = statistics_of(x, sparse.csr_matrix(z.numpy()), D, lam, [num_directions])
        D = torch.from_numpy(turned(statistics, D.numpy()))
    return D


class _Stream(IterableDataset[Tokens]):
    def __init__(self, toy: Independent, seed: int) -> None:
        self.toy, self.seed = toy, seed

    def __iter__(self) -> Iterator[Tokens]:
        generator = torch.Generator().manual_seed(self.seed)
        nothing = torch.zeros(BATCH, dtype=torch.int32)
        while True:
            yield Tokens(self.toy.draw(BATCH, generator).x, nothing, nothing, nothing)
