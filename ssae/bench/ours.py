"""One training step of ssae outside of Lightning: what LitSAE does to a batch."""

import functools
from typing import Any

import torch
from torch import Tensor

from ssae.objective.base import Objective
from ssae.objective.erm import ERM
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.scores import fast_dtype
from ssae.sae.screen import kth_largest
from ssae.sae.topk import TopKSAE
from ssae.training.lit_sae import LitSAE


class Step:
    """Gradients to zero, forward, objective, backward, projection, fused Adam, normalisation.

    Args:
        sae: what is trained.
        objective: reduces the losses of tokens.
        screening: auto or exact.
    """

    def __init__(
        self, sae: SparseAutoencoder, objective: Objective | None = None, screening: str = "auto"
    ) -> None:
        self.sae = sae
        device = sae.W_dec.device
        sae.screen_dtype = fast_dtype(device) if screening == "auto" else None
        self.lit = LitSAE(
            sae, objective or ERM(),
            optimizer=functools.partial(torch.optim.Adam, fused=True), lr=1e-4, warmup_steps=0,
            decay_share=0, num_steps=1, mean_norm=sae.d_in**0.5, variance=float(sae.d_in),
            dead_after_tokens=10**9, sparsity_warmup_steps=0, screening=screening,
        ).to(device)  # fmt: skip
        self.optimizer = torch.optim.Adam(sae.parameter_groups(1e-4), fused=True)
        self.l0: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        """Train on x (n, d_in)."""
        self.optimizer.zero_grad()
        loss, out, *_ = self.lit.loss(x)
        loss.backward()
        self.sae.remove_parallel_gradient()
        self.optimizer.step()
        self.sae.normalise_decoder()
        self.l0 = out.latents.num_active()


def make(architecture: str, x: Tensor, d_sae: int, l0: int) -> SparseAutoencoder:
    """Return an SAE whose mean number of active latents on x is about l0."""
    d_in = x.shape[1]
    common: dict[str, Any] = {
        "d_in": d_in, "d_sae": d_sae, "auxk_coefficient": 1 / 32, "k_aux": d_in // 2
    }  # fmt: skip
    thirds = [d_sae // 4, d_sae // 4, d_sae - 2 * (d_sae // 4)]
    sae: SparseAutoencoder = {
        "topk": lambda: TopKSAE(k=l0, **common),
        "batchtopk": lambda: BatchTopKSAE(k=l0, **common),
        "matryoshka": lambda: MatryoshkaSAE(k=l0, group_sizes=thirds, **common),
        "relu": lambda: ReLUSAE(l1_coefficient=1.0, **common),
        "gated": lambda: GatedSAE(l1_coefficient=1.0, **common),
        "jumprelu": lambda: JumpReLUSAE(
            l0_coefficient=1.0, target_l0=l0, bandwidth=0.1, initial_threshold=0.0,
            threshold_lr=None, **common,
        ),
    }[architecture]()  # fmt: skip
    sae.to(x.device)
    sample = x[:256]
    with torch.no_grad():
        cut = kth_largest(sae.pre_acts(sample), l0 * len(sample))
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.fill_(cut)
        elif isinstance(sae, ReLUSAE):
            sae.b_enc.fill_(-cut)
            if isinstance(sae, GatedSAE):
                sae.b_mag.fill_(-cut)
    return sae
