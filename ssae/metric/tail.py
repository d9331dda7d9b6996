"""Tail concepts: how many rare token types an SAE represents, and how well it reconstructs them.

    tail types    the rarest types of the pool, as many as make up at most half of the tokens of the
                  evaluation text, of which those with n_v >= 5 count
    tail_recall   share of the tail types that are represented (represented.py)
    tail_error    mean over tail types of the mean over their tokens of ||x - recon||^2

Intervals come from resampled documents. In a resample C, n_v, fires_j and the errors are weighted
by how often each document was drawn; threshold_j, the set of tail types and the latent j that finds
a type best stay what they are in the whole set: the maximum over latents of every resample anew
lies above that of the set. So does what the set says of a tail type that a resample does not
contain; left out, types of few documents would count less in every resample than in the set.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ssae.metric.firings import FiringTable, TypeFirings
from ssae.metric.represented import TypesFound, strong_firings, types_found

MIN_COUNT = 5
"""Occurrences in the evaluation text below which nothing is said of a type."""
CHUNK = 64
"""Resamples at a time: bounds the memory."""


class TailTypes(NamedTuple):
    """The tail of a set of tokens, and its resamples."""

    ids: np.ndarray
    """(num_tail,) token types, rising."""
    counts: np.ndarray
    """(num_tail,) n_v."""
    draws: np.ndarray
    """(1 + num_bootstraps, num_documents) int32, how often each document is drawn; row 0 is 1."""

    def places(self, vocab_size: int) -> np.ndarray:
        """Return the index in ids (vocab_size,) of every type; -1 for types not of the tail."""
        places = np.full(vocab_size, -1)
        places[self.ids] = np.arange(len(self.ids))
        return places


def tail_types(ranks: Tensor, type_counts: Tensor, draws: np.ndarray) -> TailTypes:
    """Return the tail of a set of tokens.

    Args:
        ranks: (vocab_size,) of the types in the pool, 0 for the most frequent.
        type_counts: (vocab_size,) n_v in the set.
        draws: (1 + num_bootstraps, num_documents); see `sums.document_draws`.
    """
    rarest_first = torch.argsort(ranks, descending=True)
    mass = torch.cumsum(type_counts[rarest_first], 0)
    tail = rarest_first[2 * mass <= type_counts.sum()]
    ids = tail[type_counts[tail] >= MIN_COUNT].sort().values
    return TailTypes(ids.numpy(), type_counts[ids].numpy(), draws.astype(np.int32))


class TailRecall(TypeFirings):
    """Share of tail types v with F1[v, j] >= 0.5 for some latent j, in every resample.

    Args:
        d_sae: number of latents.
        vocab_size: number of token types.
        tail: the tail types and the resamples.

    Example:
        >>> from ssae.sae.sparse import ActiveSet, SparseLatents
        >>> tail = TailTypes(np.array([1, 2]), np.array([2, 1]), np.array([[1, 1], [2, 0]]))
        >>> active = ActiveSet.of_rows(torch.tensor([[0], [0], [1]]), d_sae=2)
        >>> recall = TailRecall(d_sae=2, vocab_size=3, tail=tail)
        >>> latents = SparseLatents(active, torch.tensor([9.0, 9.0, 0.0]))
        >>> recall.update(latents, torch.tensor([1, 1, 2]), torch.tensor([0, 0, 1]))
        >>> recall.compute()  # type 2, not in the second resample, is not represented
        array([0.5, 0.5])
    """

    def __init__(self, d_sae: int, vocab_size: int, tail: TailTypes) -> None:
        super().__init__(d_sae, vocab_size)
        self.tail = tail

    def measure(self, table: FiringTable) -> np.ndarray:
        """Return the share (1 + num_bootstraps,); nan if there is no tail type."""
        return tail_recall(table, self.tail, types_found(table, self.vocab_size))


class TailError(Metric):
    """Mean over tail types of the mean over the type's tokens of an error, in every resample.

    Keeps 16 bytes for every token of the tail.

    Args:
        vocab_size: number of token types.
        tail: the tail types and the resamples.

    Example:
        >>> tail = TailTypes(np.array([1, 2]), np.array([2, 1]), np.array([[1, 1], [2, 0]]))
        >>> error = TailError(vocab_size=3, tail=tail)
        >>> tokens, documents = torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 1, 1])
        >>> error.update(torch.tensor([0.0, 2.0, 5.0, 9.0]), tokens, documents)
        >>> error.compute()
        array([3., 3.])
    """

    full_state_update = False
    errors: list[Tensor]
    types: list[Tensor]
    documents: list[Tensor]

    def __init__(self, vocab_size: int, tail: TailTypes) -> None:
        super().__init__(sync_on_compute=False)
        self.tail = tail
        self.places = torch.from_numpy(tail.places(vocab_size))
        for name in ("errors", "types", "documents"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, errors: Tensor, token_ids: Tensor, document_ids: Tensor) -> None:
        """Add errors (n,) of tokens of types token_ids (n,) in document_ids (n,)."""
        places = self.places[token_ids.long().cpu()]
        inside = places >= 0
        self.errors.append(errors.double().cpu()[inside])
        self.types.append(places[inside].int())
        self.documents.append(document_ids.int().cpu()[inside])

    def compute(self) -> np.ndarray:
        """Return the mean (1 + num_bootstraps,); nan if there is no tail type."""
        errors, types, documents = (
            dim_zero_cat(state).numpy() for state in (self.errors, self.types, self.documents)
        )
        return tail_error(errors, types, documents, self.tail)


def tail_recall(table: FiringTable, tail: TailTypes, found: TypesFound) -> np.ndarray:
    """Return the share (1 + num_bootstraps,) of tail types that are represented.

    Args:
        table: the firings.
        tail: the tail types and the resamples.
        found: the latent that finds each type best in the whole set.
    """
    strong, best = strong_firings(table), found.best_latent
    places = tail.places(len(found.best_latent))
    shape = len(tail.ids), tail.draws.shape[1]
    types = places[table.token_ids]
    inside = types >= 0
    occurs = _counts(types[inside], table.document_ids[inside], shape)
    types = places[strong.token_ids]
    both = (types >= 0) & (best[strong.token_ids] == strong.latents)
    both = _counts(types[both], strong.document_ids[both], shape)
    fires = _counts(strong.latents, strong.document_ids, (table.d_sae, shape[1]))[best[tail.ids]]

    def represented(weights: np.ndarray, n: np.ndarray) -> np.ndarray:
        return 4 * (both @ weights) >= n + fires @ weights  # F1 >= 0.5

    return _means(represented, occurs, tail.draws)


def tail_error(
    errors: np.ndarray, types: np.ndarray, documents: np.ndarray, tail: TailTypes
) -> np.ndarray:
    """Return the mean (1 + num_bootstraps,) over tail types of the mean error of their tokens.

    Args:
        errors: (n,) of tokens.
        types: (n,) index of each token's type in tail.ids.
        documents: (n,) of each token.
        tail: the tail types and the resamples.
    """
    shape = len(tail.ids), tail.draws.shape[1]
    sums = sparse.csr_matrix((errors, (types, documents)), shape)
    occurs = _counts(types, documents, shape)
    return _means(lambda weights, n: (sums @ weights) / np.maximum(n, 1), occurs, tail.draws)


def _means(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    occurs: sparse.csr_matrix,
    draws: np.ndarray,
) -> np.ndarray:
    """Return the mean over types of what is measured of each, in every row of draws.

    Args:
        measure: given weights (num_documents, num_rows) and the types' counts under them, returns
            a number (num_types, num_rows) of each type.
        occurs: (num_types, num_documents) counts.
        draws: (num_draws, num_documents); row 0 is the set itself, whose numbers stand for types
            that do not occur in another row.
    """
    means, whole = [], None
    for start in range(0, len(draws), CHUNK):
        weights = np.ascontiguousarray(draws[start : start + CHUNK].T)
        n = occurs @ weights
        values = measure(weights, n)
        whole = values[:, :1] if whole is None else whole
        values = np.where(n > 0, values, whole)
        means.append(values.mean(0) if len(values) else np.full(values.shape[1], np.nan))
    return np.concatenate(means)


def _counts(rows: np.ndarray, documents: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return how often each (row, document) is listed, as int32: sums of draws stay exact."""
    return sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, documents)), shape)
