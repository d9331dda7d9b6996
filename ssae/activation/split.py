"""Tokens for different purposes: of different documents, for those of one document are alike."""

import numpy as np
import torch

from ssae.activation.order import Permutation, mixed
from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens

READ_TOKENS = 2**14
"""At a time."""


def split_tokens(
    activations: Activations, num: int, num_held: int, seed: int
) -> tuple[Tokens, Tokens]:
    """Return `num` tokens and `num_held` of other documents; fewer where there are no more.

    Tokens are drawn one by one, not text by the page: neighbours are alike, and say less of a
    direction than their number promises. A document belongs to one side, whatever is read of it: a
    number drawn for it decides.
    """
    order = Permutation(len(activations), mixed(seed, 0))
    parts: tuple[list[Tokens], list[Tokens]] = [], []
    counts, wanted = [0, 0], (num, num_held)
    for start in range(0, len(activations), READ_TOKENS):
        if counts[0] >= num and counts[1] >= num_held:
            break
        positions = np.arange(start, min(start + READ_TOKENS, len(activations)))
        read = activations.rows(torch.from_numpy(order(positions)))
        drawn = np.random.default_rng(seed).random(int(read.document_ids.max()) + 1)
        is_held = torch.from_numpy(drawn < num_held / (num + num_held))[read.document_ids.long()]
        for side, where in enumerate((~is_held, is_held)):
            if counts[side] < wanted[side]:
                parts[side].append(Tokens(*(column[where] for column in read)))
                counts[side] += int(where.sum())
    nothing = activations.slice(0, 0)
    learnt, held = (
        Tokens(*(torch.cat(columns)[:most] for columns in zip(nothing, *side, strict=True)))
        for side, most in zip(parts, wanted, strict=True)
    )
    return learnt, held


def halves(tokens: Tokens, seed: int) -> tuple[Tokens, Tokens]:
    """Return the tokens of half of the documents, drawn, and of the others: one more if odd."""
    ids = tokens.document_ids.numpy()
    drawn = np.random.default_rng(seed).permutation(np.unique(ids))
    is_first = torch.from_numpy(np.isin(ids, drawn[1::2]))
    first, other = (Tokens(*(c[where] for c in tokens)) for where in (is_first, ~is_first))
    return first, other
