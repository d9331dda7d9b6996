"""Random firings, as a list that a loop can read and as what an SAE gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torchmetrics import Metric

from ssae.sae.sparse import ActiveSet, SparseLatents


class Tokens(NamedTuple):
    """Tokens of a text and the latents on them, dense."""

    latents: np.ndarray
    """(n, d_sae) float32."""
    token_ids: np.ndarray
    document_ids: np.ndarray

    def feed(self, metric: Any, batch: int, k: int | None = None, skip: int = 0) -> None:
        """Update a metric batch by batch, from entry `skip`; k active per token, or all of them."""
        for start in range(skip, len(self.token_ids), batch):
            piece = slice(start, start + batch)
            dense = torch.from_numpy(self.latents[piece])
            if k is None:
                active = ActiveSet.every(len(dense), dense.shape[1], dense.device)
                latents = SparseLatents(active, dense.flatten())
            else:
                values, indices = dense.topk(k, dim=1, sorted=False)
                active = ActiveSet.of_rows(indices, dense.shape[1])
                latents = SparseLatents(active, values.flatten())
            ids, documents = (torch.from_numpy(a[piece]) for a in self[1:])
            metric.update(latents, ids, documents)


def draw(
    seed: int, num_tokens: int = 300, d_sae: int = 12, num_types: int = 15, num_documents: int = 9
) -> Tokens:
    """Latent j prefers type j; at most 4 latents are > 0 on a token; types are skewed."""
    generator = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_types + 1)
    token_ids = generator.choice(num_types, num_tokens, p=share / share.sum())
    values = generator.integers(1, 40, (num_tokens, d_sae)).astype(np.float32) / 8
    own = token_ids[:, None] == np.arange(d_sae)
    fires = (generator.random((num_tokens, d_sae)) < np.where(own, 0.8, 0.12)) & (
        np.arange(d_sae) != d_sae - 2  # one latent never fires
    )
    fires &= np.cumsum(fires, axis=1) <= 4
    latents = np.where(fires, values + 3 * own, 0).astype(np.float32)
    return Tokens(latents, token_ids, generator.integers(0, num_documents, num_tokens))


@pytest.fixture(scope="session")
def draw_tokens() -> Callable[..., Tokens]:
    """Return the function that draws tokens."""
    return draw


@pytest.fixture(scope="session")
def measure() -> Callable[..., Any]:
    """Return a function that gives what a metric computes on tokens."""

    def compute(metric: Metric, tokens: Tokens, batch: int = 70, k: int | None = 4) -> Any:
        tokens.feed(metric, batch, k)
        return metric.compute()

    return compute
