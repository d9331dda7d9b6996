"""Labelled concepts: whether some latent tells the documents of a concept from all others.

A document's feature is the largest activation of each latent on it. On one half of the documents
the best latent is chosen for each concept, by AUROC and by F1 of "fires on the document"; it is
scored on the other half. Then the halves change places, and the two scores are averaged: no
document both chooses and scores.

    AUROC = (R - P (P + 1) / 2) / (P N)    R: sum of the ranks of the P positives among P + N;
                                           ties have their mean rank, all zeros are one tie
    F1    = 2 TP / (P + number of documents on which the latent fires)
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from ssae.metric.firings import Firings, FiringTable

MIN_HALF = 5
"""Positives and negatives that either half must have; fewer say nothing."""
MIN_DOCUMENTS = 10
"""Documents that make a concept."""
RECALLED_AUROC = 0.9
CHUNK = 64
"""Concepts at a time: bounds the memory, 8 bytes for each of them and each latent."""


class ConceptScores(NamedTuple):
    """How well single latents find concepts, on documents that did not choose them."""

    auroc: np.ndarray
    """(num_concepts,) nan where a half has too few documents."""
    f1: np.ndarray
    """(num_concepts,) likewise."""
    latent: np.ndarray
    """(num_concepts,) chosen on the first half, by AUROC; -1 where nan."""

    @property
    def measured(self) -> np.ndarray:
        """(num_concepts,) bool."""
        return self.latent >= 0


class DocumentPeaks(Firings):
    """The largest activation of every latent on every document, sparsely.

    Args:
        d_sae: number of latents.
        num_documents: number of documents.

    Example:
        >>> import torch
        >>> from ssae.sae.sparse import ActiveSet, SparseLatents
        >>> active = ActiveSet.of_rows(torch.tensor([[0], [0], [1]]), d_sae=2)
        >>> peaks = DocumentPeaks(d_sae=2, num_documents=2)
        >>> latents = SparseLatents(active, torch.tensor([2.0, 3.0, 7.0]))
        >>> peaks.update(latents, torch.tensor([5, 5, 5]), torch.tensor([1, 1, 0]))
        >>> peaks.compute().toarray()
        array([[0., 7.],
               [3., 0.]], dtype=float32)
    """

    def __init__(self, d_sae: int, num_documents: int) -> None:
        super().__init__(d_sae)
        self.num_documents = num_documents

    def measure(self, table: FiringTable) -> sparse.csc_matrix:
        """Return the features (num_documents, d_sae)."""
        return document_peaks(table, self.num_documents)


class ConceptRecall(Firings):
    """AUROC and F1 of the best latent for every labelled concept; see the module.

    Args:
        d_sae: number of latents.
        labels: (num, num_concepts) bool, of documents, or of tokens: then the document_ids given to
            update are the rows of the tokens in labels.
        seed: of the halves.

    Example:
        >>> import torch
        >>> from ssae.sae.sparse import ActiveSet, SparseLatents
        >>> documents = torch.arange(40)
        >>> active = ActiveSet.of_rows(documents[:, None] % 2, d_sae=2)
        >>> recall = ConceptRecall(2, labels=(documents[:, None] % 2 == 1).numpy(), seed=0)
        >>> recall.update(SparseLatents(active, torch.ones(40)), torch.zeros(40), documents)
        >>> recall.compute()
        ConceptScores(auroc=array([1.]), f1=array([1.]), latent=array([1]))
    """

    def __init__(self, d_sae: int, labels: np.ndarray, seed: int) -> None:
        super().__init__(d_sae)
        self.labels, self.seed = labels, seed

    def measure(self, table: FiringTable) -> ConceptScores:
        """Return the scores of every concept."""
        features = document_peaks(table, len(self.labels))
        return concept_scores(sparse.csr_matrix(features), self.labels, self.seed)


def document_peaks(table: FiringTable, num_documents: int) -> sparse.csc_matrix:
    """Return the largest activation of every latent on every document, (num_documents, d_sae)."""
    documents = table.document_ids[table.tokens]
    new = np.ones(len(documents), dtype=bool)
    new[1:] = documents[1:] != documents[:-1]
    new[table.offsets[:-1][np.diff(table.offsets) > 0]] = True
    starts = np.flatnonzero(new)
    data = np.maximum.reduceat(table.values, starts) if len(starts) else table.values
    offsets = np.searchsorted(starts, table.offsets)
    return sparse.csc_matrix((data, documents[starts], offsets), (num_documents, table.d_sae))


def concept_scores(features: sparse.csr_matrix, labels: np.ndarray, seed: int) -> ConceptScores:
    """Return the scores of every concept.

    Args:
        features: (num, d_sae) >= 0, of documents or of whatever else is labelled.
        labels: (num, num_concepts) bool.
        seed: of the permutation that makes the halves.
    """
    halves = np.array_split(np.random.default_rng(seed).permutation(len(labels)), 2)
    sides = [(features[half].tocsc(), labels[half].astype(np.float64)) for half in halves]
    ranked = [_centred_ranks(side, len(own)) for side, own in sides]
    num_concepts = labels.shape[1]
    auroc, f1 = np.zeros((2, num_concepts)), np.zeros((2, num_concepts))
    latent = np.zeros(num_concepts, dtype=np.int64)
    for start in range(0, num_concepts, CHUNK):
        piece = slice(start, start + CHUNK)
        each = np.arange(num_concepts)[piece] - start
        by_auroc = [
            _aurocs(*pair, own[:, piece])
            for pair, (_, own) in zip(ranked, sides, strict=True)
        ]  # fmt: skip
        by_f1 = [_f1s(side, own[:, piece]) for side, own in sides]
        for scores, found in ((by_auroc, auroc), (by_f1, f1)):
            for chooses, judges in ((0, 1), (1, 0)):
                found[chooses, piece] = scores[judges][scores[chooses].argmax(0), each]
        latent[piece] = by_auroc[0].argmax(0)
    few = np.zeros(num_concepts, dtype=bool)
    for _, own in sides:
        few |= np.minimum(own.sum(0), (1 - own).sum(0)) < MIN_HALF
    auroc, f1 = (np.where(few, np.nan, found.mean(0)) for found in (auroc, f1))
    return ConceptScores(auroc, f1, np.where(few, -1, latent))


def concept_labels(sources: Sequence[str | None]) -> tuple[list[str], np.ndarray]:
    """Return the concepts that sources of documents name, and labels (num, num_concepts) bool.

    A concept is a source of at least 10 documents. Where there are not two of them the sources are
    too fine: then their first two dotted parts are concepts ("scipy.stats"), or their first part.
    Two that are each other's complement are one question, such as which file a document is of, and
    no concepts.
    """
    for num_parts in (None, 2, 1):
        groups = [".".join(source.split(".")[:num_parts]) if source else "" for source in sources]
        counts = Counter(group for group in groups if group)
        names = sorted(group for group, count in counts.items() if count >= MIN_DOCUMENTS)
        labels = np.array(groups)[:, None] == np.array(names)
        if len(names) > 2 or (len(names) == 2 and not labels.any(1).all()):
            return names, labels
    return [], np.zeros((len(sources), 0), dtype=bool)


def _centred_ranks(features: sparse.csc_matrix, num: int) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Return the rank of every entry among num, less that of the zeros, and the zeros' (d_sae,)."""
    counts = np.diff(features.indptr)
    columns = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((features.data, columns))
    values = features.data[order]
    new = np.ones(len(values), dtype=bool)
    new[1:] = (values[1:] != values[:-1]) | (columns[1:] != columns[:-1])
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(values))
    middle = np.repeat((starts + ends + 1) / 2, ends - starts)  # of 1-based places
    zeros = num - counts
    zero_rank = (zeros + 1) / 2
    ranks = np.empty(len(values))
    ranks[order] = middle - np.repeat(features.indptr[:-1] - zeros + zero_rank, counts)
    parts = ranks, features.indices, features.indptr
    return sparse.csc_matrix(parts, features.shape), zero_rank


def _aurocs(ranks: sparse.csc_matrix, zero_rank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUROC (d_sae, num_concepts) of every latent for every concept."""
    positives = labels.sum(0)
    rank_sums = ranks.T @ labels + zero_rank[:, None] * positives
    pairs = np.maximum(positives * (len(labels) - positives), 1)
    return (rank_sums - positives * (positives + 1) / 2) / pairs


def _f1s(features: sparse.csc_matrix, labels: np.ndarray) -> np.ndarray:
    """Return F1 (d_sae, num_concepts) of "the latent fires" for every concept."""
    fires = sparse.csc_matrix(
        (np.ones(features.nnz), features.indices, features.indptr), features.shape
    )
    positives, counts = labels.sum(0), np.diff(features.indptr)
    return 2 * (fires.T @ labels) / np.maximum(positives + counts[:, None], 1)
