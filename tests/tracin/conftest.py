"""SAEs of every architecture in float64, and scores by the gradient of every single document."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.language_model.frozen import LanguageModel
from ssae.sae import screen
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.residual import ResidualSAE
from ssae.tracin import Checkpoint

HOOKPOINT = "gpt_neox.layers.1"
KINDS = ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]


@pytest.fixture(params=[*KINDS, "residual"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every architecture."""
    return request.param


@pytest.fixture(params=["sparse", "dense"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two equal computations `forward` is."""
    monkeypatch.setattr(screen, "DENSE_SHARE", 1.0 if request.param == "sparse" else 0.0)
    return request.param


@pytest.fixture
def make_sae(all_saes) -> Callable[..., SparseAutoencoder]:
    """Return a function that gives an SAE of activations of mean norm near 30."""
    makers = all_saes(24, 3, [8, 16])

    def make(kind: str, seed: int = 0) -> SparseAutoencoder:
        torch.manual_seed(seed)
        if kind == "residual":
            return ResidualSAE(make("topk", seed), make("jumprelu", seed + 1)).eval()
        sae = makers[kind](d_in=16).double()
        with torch.no_grad():
            for name, weight in sae.named_parameters():
                weight.add_((0.1 if name == "threshold" else 0.3) * torch.randn_like(weight))
            if isinstance(sae, BatchTopKSAE):
                sae.threshold.fill_(1.1)
        sae.rescale_input(8.0)
        return sae.eval()

    return make


@pytest.fixture
def make_checkpoints(make_sae) -> Callable[[str], list[Checkpoint]]:
    """Return a function that gives three of different weights."""

    def make(kind: str) -> list[Checkpoint]:
        return [Checkpoint(make_sae(kind, 10 * i), w) for i, w in enumerate((0.5, 0.2, 0.3))]

    return make


@pytest.fixture(scope="session")
def lm(neox_folder) -> LanguageModel:
    """In float64: what a token is given does not depend on its batch, but for 1e-15."""
    lm = LanguageModel(str(neox_folder), device="cpu")
    lm.model.double()
    return lm


@pytest.fixture
def activations_of(lm) -> Callable[[Rows], list[Tensor]]:
    """Return a function that gives each document's activations (num_tokens, d_in), row by row."""

    def of(rows: Rows) -> list[Tensor]:
        special = set(lm.tokenizer.all_special_ids)
        found: list[list[Tensor]] = [[] for _ in range(rows.num_documents)]
        for row in range(rows.num_rows):
            batch = rows.batch(np.array([row]))
            x = lm.capture(batch.input_ids, HOOKPOINT)[0]
            for position, token in enumerate(batch.input_ids[0].tolist()):
                if token not in special:
                    found[int(batch.document_ids[0, position])].append(x[position])
        return [torch.stack(own) if own else torch.zeros(0, 16) for own in found]

    return of


def mean_loss(sae: Any, x: Tensor) -> Tensor:
    """The loss of one document by dense products."""
    out = sae.forward_dense(x)
    penalty = sae.penalty(out)
    return (sae.errors(x, out) + (0 if penalty is None else penalty)).mean()


def gradient(sae: Any, loss: Tensor) -> dict[str, Tensor]:
    """The gradient by the parameters that are not frozen."""
    weights = {n: w for n, w in sae.named_parameters() if w.requires_grad}
    grads = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, grads, strict=True))


@pytest.fixture
def by_hand() -> tuple[Callable[..., Tensor], Callable[..., dict[str, Tensor]]]:
    return mean_loss, gradient
