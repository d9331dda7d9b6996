"""Choosing the active latents without an (n, d_sae) tensor.

The scores x_i . W_enc[:, j] + b_enc_j are computed for some hundred tokens at a time, and only what
can matter is kept. With a low-precision `dtype` (bfloat16 where the processor multiplies it several
times faster) the scores only *screen*: somewhat more candidates than needed are kept, scored again
in the weights' own dtype on the sparse set, and chosen by that. Chosen latents and their values
are then those of the exact computation, but for ties within the rounding error of the screen that
exceed the spare candidates.
"""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ssae.process.ranks import all_reduce, world_size
from ssae.sae.products import sampled_product
from ssae.sae.scores import (
    chunks,
    comparable,
    grouped,
    is_lower,
    largest_per_row,
    margin,
    where_above,
)
from ssae.sae.sparse import ActiveSet

SPARE = 1.25
"""Candidates per wanted latent when the screen is in low precision."""
DENSE_SHARE = 1 / 16
"""Above this active share dense matrix products are faster than sparse ones (measured on CPU)."""


@torch.no_grad()
def top_k(
    x: Tensor, W_enc_T: Tensor, b_enc: Tensor, k: int, dtype: torch.dtype | None
) -> tuple[ActiveSet, Tensor]:
    """Return the k latents of largest pre_acts of each token, and those pre_acts (n k,).

    Args:
        x: (n, d_in), less b_dec.
        W_enc_T: (d_sae, d_in).
        b_enc: (d_sae,).
        k: 1 .. d_sae.
        dtype: of the screen; None for the dtype of the weights.
    """
    x, W_enc_T, b_enc = _plain(x), _plain(W_enc_T), _plain(b_enc)
    n, d_sae = len(x), len(W_enc_T)
    screens = is_lower(dtype, W_enc_T)
    num = min(d_sae, max(k + 8, int(SPARE * k))) if screens else k
    indices = torch.empty(n, num, dtype=torch.int64, device=x.device)
    exact: list[Tensor] = []
    for start, scores in chunks(x, W_enc_T, b_enc, dtype):
        rows = slice(start, start + len(scores))
        indices[rows] = largest_per_row(comparable(scores), num)
        if not screens:
            exact.append(scores.gather(1, indices[rows]))
    active = ActiveSet.of_rows(indices, d_sae)
    if not screens:
        return active, torch.cat(exact).flatten()
    pre_acts = sampled_product(x, W_enc_T, active).view(n, num) + b_enc[indices]
    pre_acts, chosen = pre_acts.topk(k, sorted=False)
    return ActiveSet.of_rows(indices.gather(1, chosen), d_sae), pre_acts.flatten()


@torch.no_grad()
def above(
    x: Tensor, W_enc_T: Tensor, b_enc: Tensor, limit: Tensor | float, dtype: torch.dtype | None
) -> tuple[ActiveSet, Tensor] | None:
    """Return the latents with pre_acts > limit and those, or None if more than DENSE_SHARE are.

    Args:
        x: (n, d_in), less b_dec.
        W_enc_T: (d_sae, d_in).
        b_enc: (d_sae,).
        limit: one number, or one per latent (d_sae,).
        dtype: of the screen; None for the dtype of the weights.
    """
    x, W_enc_T, b_enc = _plain(x), _plain(W_enc_T), _plain(b_enc)
    if not torch.isfinite(x.sum(dtype=torch.float32)):
        return None  # comparisons would drop what is NaN; dense products pass it on
    limit = _plain(limit) if isinstance(limit, Tensor) else limit
    shifted = (b_enc - limit).to(b_enc.dtype)
    screens = is_lower(dtype, W_enc_T)
    tokens, latents, exact = [], [], []
    num_found = num_scanned = 0
    for start, scores in chunks(x, W_enc_T, shifted, dtype, margin(x, W_enc_T, dtype)):
        rows, columns = where_above(scores, scores.new_zeros(len(scores), 1))
        tokens.append(rows + start)
        latents.append(columns)
        if not screens:
            exact.append(scores[rows, columns])
        num_found, num_scanned = num_found + len(columns), num_scanned + scores.numel()
        if num_found > DENSE_SHARE * num_scanned:
            return None
    rows, columns = torch.cat(tokens), torch.cat(latents)
    active = ActiveSet.of_pairs(rows, columns, len(x), len(W_enc_T))
    excess = torch.cat(exact or [sampled_product(x, W_enc_T, active) + shifted[columns]])
    pre_acts = excess + (b_enc - shifted)[columns]
    return _subset(active, rows, excess > 0, pre_acts)


@torch.no_grad()
def largest_of_batch(
    x: Tensor, W_enc_T: Tensor, b_enc: Tensor, k: int, dtype: torch.dtype | None
) -> tuple[ActiveSet, Tensor] | None:
    """Return the k * n largest positive pre_acts of the global batch; ties at the end all count.

    Every rank gets its own tokens' share. None when k * n is more than DENSE_SHARE of all.

    Screening needs the threshold before it is known. The first chunk gives a guess; the maxima of
    the groups, kept from all chunks, tell afterwards whether anything below the guess was needed.
    """
    x, W_enc_T, b_enc = _plain(x), _plain(W_enc_T), _plain(b_enc)
    n, d_sae = len(x), len(W_enc_T)
    finite = torch.isfinite(x.sum(dtype=torch.float32)).float()
    if k > DENSE_SHARE * d_sae or all_reduce(finite) < world_size():
        return None
    below = margin(x, W_enc_T, dtype)
    guess: Tensor | None = None
    for _ in range(3):
        tokens, latents, tops = [], [], []
        for start, scores in chunks(x, W_enc_T, b_enc, dtype):
            top = grouped(scores).amax(1).view(scores.dtype)
            if guess is None:
                # A lower bound of this chunk's own threshold; chunks differ by some per cent.
                guess = 0.9 * kth_largest(top.float(), k * len(scores), everywhere=False)
            limit = (guess - below[start : start + len(scores), None]).clamp_min(0)
            rows, columns = where_above(scores, limit.to(scores.dtype))
            tokens.append(rows + start)
            latents.append(columns)
            tops.append(top.flatten())
        rows, columns = torch.cat(tokens), torch.cat(latents)
        active = ActiveSet.of_pairs(rows, columns, n, d_sae)
        pre_acts = sampled_product(x, W_enc_T, active) + b_enc[columns]
        threshold = kth_largest(pre_acts, k * n * world_size())
        assert guess is not None
        enough = (threshold >= guess).float()
        if all_reduce(enough) == world_size():
            keep = (pre_acts >= threshold) & (pre_acts > 0)
            return _subset(active, rows, keep, pre_acts)
        # The k n largest maxima are k n different pre_acts: none of the k n largest is below them.
        bound = kth_largest(torch.cat(tops).float(), k * n * world_size())
        guess = torch.minimum(0.98 * bound, 0.9 * guess)
    return None


def kth_largest(values: Tensor, k: int, *, everywhere: bool = True) -> Tensor:
    """Return the k-th largest positive value, exactly; 0 where there are fewer.

    A radix selection on the bits of the floats, 16 at a time: two histograms of float32.

    Args:
        values: any shape; what is not positive is left out.
        k: at least 1.
        everywhere: over the values of all ranks (every rank must call it) or of this one.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    values = _plain(values)
    bits = values[values > 0].contiguous().view(integers).long()
    prefix = torch.zeros((), dtype=torch.int64, device=values.device)
    for shift in range(8 * values.element_size() - 16, -1, -16):
        digits = (bits >> shift) & 0xFFFF
        counts = torch.bincount(digits, minlength=2**16)
        from_top = (all_reduce(counts) if everywhere else counts).flip(0).cumsum(0)
        if from_top[-1] < k:  # can only be so in the first round
            return torch.zeros((), dtype=values.dtype, device=values.device)
        place = int(torch.searchsorted(from_top, k))
        k -= int(from_top[place - 1]) if place else 0
        digit = 2**16 - 1 - place
        bits = bits[digits == digit]
        prefix = prefix + (digit << shift)
    return prefix.to(integers).view(values.dtype)


def _plain(tensor: Tensor) -> Tensor:
    """Return it without derivatives, forward ones too: a choice has none."""
    return forward_ad.unpack_dual(tensor.detach()).primal


def _subset(
    active: ActiveSet, tokens: Tensor, keep: Tensor, values: Tensor
) -> tuple[ActiveSet, Tensor]:
    assert active.indices is not None
    latents = active.indices[keep]
    return ActiveSet.of_pairs(tokens[keep], latents, active.num_tokens, active.d_sae), values[keep]
