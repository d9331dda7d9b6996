"""Which rows go into which shard, and what that costs: known before the first shard is made."""

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.capture import capture_text
from ssae.activation.rows import Rows, batches_of
from ssae.activation.shards import shard_bytes
from ssae.language_model.frozen import LanguageModel

log = logging.getLogger(__name__)

MARGIN_BYTES = 2**26
"""Free space beyond the shards: statistics, manifest, and what others write meanwhile."""
PROBE_SHARE = 0.01
"""Of the tokens to be made: the most that measuring the language model's speed may read."""


class Shard(NamedTuple):
    """One shard to be made."""

    number: int
    row_ids: np.ndarray
    """(num_rows,) consecutive rows, without those that hold no text."""
    first_token: int
    """The number of its first token in the harvest."""
    num_tokens: int


class Width(NamedTuple):
    """What a hookpoint gives."""

    d_in: int
    dtype: torch.dtype


def plan_shards(rows: Rows, shard_tokens: int) -> list[Shard]:
    """Return the shards of a harvest, of `shard_tokens` tokens each but for a part of a row.

    A row goes where its first token would go if shards held `shard_tokens` exactly.
    """
    row_ids = np.flatnonzero(rows.text_tokens)
    ends = np.cumsum(rows.text_tokens[row_ids], dtype=np.int64)
    starts = ends - rows.text_tokens[row_ids]
    # A row that is longer than shard_tokens leaves no empty shard behind.
    _, first = np.unique(starts // shard_tokens, return_index=True)
    last = np.append(first[1:], len(row_ids))
    return [
        Shard(number, row_ids[a:b], int(starts[a]), int(ends[b - 1] - starts[a]))
        for number, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True))
    ]


def places_of(rows: Rows, all_ids: np.ndarray, row_ids: np.ndarray) -> slice | Tensor:
    """Return where the tokens of some rows come among those of all rows of a shard or a window.

    Args:
        rows: what the ids index.
        all_ids: ascending.
        row_ids: some of them, in the order in which their tokens come; neighbours make a slice.
    """
    lengths = rows.text_tokens[all_ids].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    chosen = np.searchsorted(all_ids, row_ids)
    lengths, starts = lengths[chosen], starts[chosen]
    if (np.diff(chosen) == 1).all():
        return slice(int(starts[0]), int(starts[0] + lengths.sum()))
    before = np.cumsum(lengths) - lengths
    return torch.from_numpy(np.repeat(starts - before, lengths) + np.arange(lengths.sum()))


def announce(
    lm: LanguageModel,
    rows: Rows,
    shards: list[Shard],
    folders: Mapping[str, Path],
    missing: Mapping[str, list[int]],
    batch_tokens: int,
    at_once: int,
) -> dict[str, Width]:
    """Log tokens, bytes and time of what is missing; return what each hookpoint gives.

    Tokens and bytes are exact; the time is that of a batch, of at most PROBE_SHARE of the harvest.

    Args:
        lm: the language model.
        rows: the text.
        shards: all of the harvest.
        folders: {hookpoint: where its shards go}; what killed processes left there is removed.
        missing: {hookpoint: the shards that are not there}.
        batch_tokens: of a forward pass.
        at_once: ranks that work at the same time without slowing each other.

    Raises:
        ValueError: the disk cannot hold it.
    """
    to_make = set().union(*missing.values())
    num_tokens = sum(shards[number].num_tokens for number in to_make)
    probe_tokens = min(batch_tokens, int(PROBE_SHARE * num_tokens))
    row_ids = batches_of(rows, shards[0].row_ids, probe_tokens)[-1]
    capture_text(lm, rows.batch(row_ids[:1]), list(folders))  # starts what starts only once
    batch = rows.batch(row_ids)
    start = time.perf_counter()
    captured = capture_text(lm, batch, list(folders))
    widths = {name: Width(x.shape[1], x.dtype) for name, x in captured.items()}
    for x in captured.values():
        x[-1:].cpu()  # waits for a GPU
    rate = at_once * int(batch.text.sum()) / (time.perf_counter() - start)
    num_bytes = 0
    for name, folder in folders.items():
        for path in folder.glob("*.unfinished"):
            path.unlink()
        for number in missing[name]:
            num_bytes += shard_bytes(shards[number].num_tokens, *widths[name])
    if to_make:
        there = len(shards) - len(to_make)
        log.info(
            "harvest: %s tokens in %d shard%s at %s, %.2f GB; roughly %s at %s tokens/s%s",
            f"{num_tokens:,}", len(to_make), "s" * (len(to_make) != 1), ", ".join(folders),
            num_bytes / 1e9, _time(num_tokens / rate), f"{rate:,.0f}",
            f"; {there} are there" if there else "",
        )  # fmt: skip
    folder = next(iter(folders.values()))
    free = shutil.disk_usage(folder).free
    if num_bytes and num_bytes + MARGIN_BYTES > free:
        raise ValueError(
            f"the harvest needs {num_bytes / 1e9:.2f} GB and {MARGIN_BYTES / 1e9:.2f} GB to spare, "
            f"and {folder} has {free / 1e9:.2f} GB free; set artifacts=<a folder on a larger "
            "disk>, a smaller budget_tokens, generalist.budget_tokens or evaluation_tokens, or "
            "activation=stream"
        )
    return widths


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
