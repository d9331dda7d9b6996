"""Which text a stream reads when: lanes and windows, functions of (seed, position) alone.

    rows of an epoch, permuted    r7 r2 r9 r0 r5 r4 r1 r8 ...
    lane 0 of 2                   r7    r9    r5    r1       | next epoch ...
    lane 1 of 2                      r2    r0    r4    r8    | next epoch ...

Each lane is an endless sequence of tokens: its rows of epoch 0, of epoch 1, ... A lane's epoch is
cut, between rows, into windows of nearly equal size, and the tokens of a window are shuffled. Every
batch takes as many tokens from each lane, in the order of lanes, so that ranks which own a few
lanes each make, together, what one rank makes of all.

An epoch of the stream is one epoch of every lane: it holds each token of text exactly once. Lanes
end theirs a little apart, as their rows do not hold equally many tokens.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssae.activation.order import Permutation, mixed, shuffled
from ssae.activation.rows import Rows


class Window(NamedTuple):
    """Rows of a lane whose tokens are shuffled together."""

    epoch: int
    row_ids: np.ndarray
    """(num_rows,), ascending."""
    start: int
    """Where in the lane's sequence it begins."""
    num_tokens: int
    """Of text."""
    seed: int
    """Of the shuffle."""

    def places(self) -> Tensor:
        """Return (num_tokens,): where in the window each token comes, rows in order."""
        return shuffled(self.num_tokens, self.seed)


def windows(
    rows: Rows, *, lane: int, num_lanes: int, lane_window_tokens: int, seed: int
) -> Iterator[Window]:
    """Yield the windows of a lane, without end.

    Each holds at most `lane_window_tokens` and the tokens of one row. Needs 16 bytes a row of the
    lane's epoch.

    Args:
        rows: of all text; at least one for each lane.
        lane: of 0 .. num_lanes - 1.
        num_lanes: how many there are.
        lane_window_tokens: tokens of a window.
        seed: decides everything.
    """
    start = 0
    for epoch in itertools.count():
        order = Permutation(rows.num_rows, mixed(seed, epoch))
        row_ids = order(np.arange(lane, rows.num_rows, num_lanes))
        ends = np.cumsum(rows.text_tokens[row_ids], dtype=np.int64)
        num_windows = -(-int(ends[-1]) // lane_window_tokens)
        # A window ends with the row that brings the lane to its share of the epoch.
        shares = int(ends[-1]) * np.arange(1, num_windows) // max(1, num_windows)
        last = np.searchsorted(ends, shares)
        for number, chosen in enumerate(np.split(row_ids, last + 1)):
            num_tokens = int(rows.text_tokens[chosen].sum())
            if num_tokens:  # none where a row is longer than a window
                part = 1 + lane + num_lanes * number
                yield Window(epoch, np.sort(chosen), start, num_tokens, mixed(seed, epoch, part))
                start += num_tokens


def sample_rows(rows: Rows, num_tokens: int, seed: int) -> np.ndarray:
    """Return random rows that hold at least `num_tokens` of text, or all of them, in order."""
    chosen = np.empty(0, dtype=np.int64)
    order = Permutation(rows.num_rows, mixed(seed, -1))  # unrelated to that of any epoch
    while len(chosen) < rows.num_rows and rows.text_tokens[chosen].sum() < num_tokens:
        more = np.arange(len(chosen), min(rows.num_rows, 2 * len(chosen) + 1024))
        chosen = np.concatenate([chosen, order(more)])
    ends = np.cumsum(rows.text_tokens[chosen], dtype=np.int64)
    return np.sort(chosen[: int(np.searchsorted(ends, num_tokens)) + 1])
