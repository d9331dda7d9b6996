"""Scores of all latents, some hundred tokens at a time, and what is read off such a chunk.

Within a row, latents stand in groups, and only groups whose maximum matters are looked into: most
of a row is read once, by a vectorised maximum.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

GROUP = 16
"""Latents of a group, or the largest divisor of it that divides d_sae."""
QUARTERS = 4
"""Groups that a row is cut into where its largest scores are wanted have this many members."""
DIRECT = 8
"""Rows up to this many scores per wanted one are not cut further (measured on CPU)."""
PARTITION_THREADS = 16
"""numpy partitions in one thread, a row some eight times faster than one thread of torch's topk."""
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**29}
"""Scores held at once. On CPUs larger arrays would be mapped, and page-faulted, anew each time."""


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where the hardware multiplies it faster than float32, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else None


def is_lower(dtype: torch.dtype | None, weights: Tensor) -> bool:
    """Whether scores in `dtype` only screen: fewer bits than the weights have."""
    return dtype is not None and dtype.itemsize < weights.dtype.itemsize


def margin(x: Tensor, W_enc_T: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return how far below a limit (n,) >= 0 a score may lie whose pre_act exceeds the limit.

    bfloat16 keeps 8 bits, so a product x_d w_d errs by at most 2^-8 of it. That bound is used where
    one dimension outweighs the others, as in many language models; over d_in alike ones errors
    cancel, and it is about eight times their standard deviation.
    """
    if not is_lower(dtype, W_enc_T):
        return x.new_zeros(len(x))
    largest = torch.maximum(W_enc_T.amax(0), -W_enc_T.amin(0))
    return 2**-8 * torch.linalg.vector_norm(x * largest, dim=1)


def chunks(
    x: Tensor,
    W_enc_T: Tensor,
    b_enc: Tensor,
    dtype: torch.dtype | None,
    raised: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first token, scores (chunk, d_sae)); the scores are overwritten by the next chunk.

    Args:
        x: (n, d_in).
        W_enc_T: (d_sae, d_in).
        b_enc: (d_sae,).
        dtype: of the screen.
        raised: (n,) what a screen in low precision adds to all scores of a token.
    """
    n, d_sae = len(x), len(W_enc_T)
    screens = is_lower(dtype, W_enc_T)
    if screens:
        assert dtype is not None
        x, W_enc_T = _with_bias_columns(x, W_enc_T, b_enc, dtype, raised)
    chunk_bytes = CHUNK_BYTES.get(x.device.type, 2**29)
    chunk = max(1, min(n, chunk_bytes // (d_sae * W_enc_T.element_size())))
    scores = torch.empty(chunk, d_sae, dtype=W_enc_T.dtype, device=x.device)
    for start in range(0, max(n, 1), chunk):  # without tokens, one empty chunk
        rows = x[start : start + chunk]
        out = scores[: len(rows)]
        if screens:
            torch.mm(rows, W_enc_T.T, out=out)
        else:
            torch.addmm(b_enc, rows, W_enc_T.T, out=out)
        yield start, out


def _with_bias_columns(
    x: Tensor, W_enc_T: Tensor, b_enc: Tensor, dtype: torch.dtype, raised: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return [x, 1, 1, raised, 0 ...] and [W_enc_T, high, low, 1, 0 ...] with high + low = b_enc.

    In two low-precision parts a bias keeps 16 bits, and adding it costs no pass over the scores.
    32 more columns keep the rows aligned to the tiles of matrix units.
    """
    d_in = x.shape[1]
    wide_x = x.new_zeros(len(x), d_in + 32, dtype=dtype)
    wide_x[:, :d_in] = x
    wide_x[:, d_in : d_in + 2] = 1
    wide_W = W_enc_T.new_zeros(len(W_enc_T), d_in + 32, dtype=dtype)
    wide_W[:, :d_in] = W_enc_T
    high = b_enc.to(dtype)
    wide_W[:, d_in] = high
    wide_W[:, d_in + 1] = b_enc - high.to(b_enc.dtype)
    if raised is not None:
        wide_x[:, d_in + 2] = raised
        wide_W[:, d_in + 2] = 1
    return wide_x, wide_W


def grouped(scores: Tensor) -> Tensor:
    """Return a view (chunk, members, groups): latent j is in group j % groups."""
    size = math.gcd(scores.shape[1], GROUP)
    return comparable(scores).view(len(scores), size, scores.shape[1] // size)


def largest_per_row(scores: Tensor, num: int) -> Tensor:
    """Return the indices (chunk, num) of the largest scores of each row.

    The largest lie in the groups with the largest maxima, and these are found the same way: so a
    vectorised maximum reads the row, and the selection, which is slow, sees few numbers.
    """
    width = scores.shape[1]
    size = width // QUARTERS
    if width <= DIRECT * num:
        return _largest(scores, torch.arange(width, device=scores.device).expand_as(scores), num)
    in_groups, rest = scores[:, : QUARTERS * size], width - QUARTERS * size
    best = largest_per_row(in_groups.unflatten(1, (QUARTERS, size)).amax(1), num)
    firsts = torch.arange(0, QUARTERS * size, size, device=scores.device)
    members = (best[:, None] + firsts[:, None]).flatten(1)
    if rest:
        outside = torch.arange(width - rest, width, device=scores.device)
        members = torch.cat([members, outside.expand(len(members), rest)], dim=1)
    return _largest(scores.gather(1, members), members, num)


def _largest(values: Tensor, indices: Tensor, num: int) -> Tensor:
    """Return the `indices` (chunk, num) of the largest of the values (chunk, width) of each row."""
    width, threads = values.shape[1], torch.get_num_threads()
    packs = values.dtype == torch.int16 and width <= 2**16
    if not packs or values.device.type != "cpu" or threads > PARTITION_THREADS:
        return indices.gather(1, values.topk(num, sorted=False).indices)
    keys = torch.add(torch.arange(width, dtype=torch.int32), values, alpha=2**16)
    keys.numpy().partition(width - num, axis=1)  # numpy has vector instructions for it
    places = keys[:, width - num :].bitwise_and(2**16 - 1)
    return indices.gather(1, places.long())


def comparable(scores: Tensor) -> Tensor:
    """Return 16-bit floats as integers: the same order where positive, and four times faster.

    The order of negative ones does not matter here.
    """
    return scores.view(torch.int16) if scores.element_size() == 2 else scores


def where_above(scores: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns) of the scores > limit (chunk, 1) >= 0, in the order of rows."""
    groups, limit = grouped(scores), comparable(limit)
    rows, group = (groups.amax(1) > limit).nonzero(as_tuple=True)
    hit, member = (groups[rows, :, group] > limit[rows]).nonzero(as_tuple=True)
    return rows[hit], member * groups.shape[2] + group[hit]
