"""What needs no SAE: projections that take an attribute out of representations or embeddings."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssae.language_model.frozen import LanguageModel
from ssae.probe.represent import Edit


def mean_difference(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return x without its part along the difference of two means.

        u = mean(second) - mean(first);   x' = x - ((x - midpoint) . u / ||u||^2) u

    Args:
        x: (n, d).
        first: (m, d) representations of one value of the attribute.
        second: (m', d) those of the other.
    """
    means = first.double().mean(0), second.double().mean(0)
    u, midpoint = means[1] - means[0], (means[0] + means[1]) / 2
    along = ((x.double() - midpoint) @ u) / (u @ u).clamp_min(1e-30)
    return (x.double() - along[:, None] * u).float()


def leace(x: Tensor, train: Tensor, z: np.ndarray) -> Tensor:
    """Return x without what any linear classifier could tell of z (LEACE, arXiv 2306.03819).

    The least change that leaves no covariance with z: for one attribute

        x' = x - c (c^T S^+ (x - mu)) / (c^T S^+ c),    c = Cov(x, z), S = Cov(x), of `train`

    Args:
        x: (n, d).
        train: (m, d).
        z: (m,) the attribute, 0 or 1, of `train`.
    """
    train = train.double()
    mu, centred = train.mean(0), train - train.mean(0)
    attribute = torch.from_numpy(z - z.mean())
    c = centred.T @ attribute / len(train)
    inverse = torch.linalg.pinv(centred.T @ centred / len(train), hermitian=True)
    reader = inverse @ c
    size = reader @ c
    if size <= 0:  # nothing of z is in x
        return x
    return (x.double() - ((x.double() - mu) @ reader / size)[:, None] * c).float()


def embedding_edit(lm: LanguageModel, pairs: Sequence[Sequence[str]]) -> tuple[str, Edit]:
    """Return the embedding's hookpoint, and what takes the differences of word pairs out of it.

        e' = e - Q Q^T e,    Q an orthonormal basis of { e(second) - e(first) : pairs }

    of every token of text: what ablating at the embedding alone can do. A word of several tokens is
    their mean.
    """
    embedding = lm.model.get_input_embeddings()
    hookpoint = next(name for name, module in lm.model.named_modules() if module is embedding)
    differences = torch.stack([_embedded(lm, pair[1]) - _embedded(lm, pair[0]) for pair in pairs])
    _, sizes, rows = torch.linalg.svd(differences, full_matrices=False)
    basis = rows[sizes > 1e-6 * sizes.max()].float()

    def edit(x: Tensor, batch: object) -> Tensor:
        own = basis.to(x)
        return x - (x @ own.T) @ own

    return hookpoint, edit


def _embedded(lm: LanguageModel, word: str) -> Tensor:
    """Return the mean embedding (d,) float64 of a word inside of a sentence."""
    ids = lm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    weight = lm.model.get_input_embeddings().weight
    return weight.detach()[torch.tensor(ids, device=weight.device)].double().mean(0).cpu()
