"""Orders that are functions of (seed, position): nothing of them is stored, no state is resumed.

An epoch of activations on disk is read in windows: large enough to shuffle, small enough to stay in
memory.

    blocks of the epoch   0 1 2 3 ...    consecutive tokens
    permuted              7 2 9 0 | 5 4 1 8 | 3 6 ...    cut into windows
    tokens of a window    all shuffled
"""

import math

import numpy as np
import torch
from torch import Tensor

ROUNDS = 12
"""Even; with 8, permutations of 5 are measurably not uniform."""


def mixed(seed: int, epoch: int, part: int = 0) -> int:
    """Return a seed for a part of an epoch; neighbouring arguments give unrelated ones."""
    words = seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + part * 0x8CB92BA72F3D8DD7
    return words % 2**63


def shuffled(num: int, seed: int) -> Tensor:
    """Return a uniformly random permutation (num,) that is a function of the seed."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))


class Permutation:
    """A pseudo-random permutation of 0 .. n - 1 in O(1) memory: perm(positions) -> values.

    A Feistel network over pairs (left, right) in Z_a x Z_b, with n <= a b < n + b:

        left  <- left  + F_i(right)  mod a        i even
        right <- right + F_i(left)   mod b        i odd

    F_i a keyed 64-bit hash. Every round can be undone, so all of them together are a bijection of
    0 .. ab - 1; what falls outside 0 .. n - 1 goes through it again until it falls inside (cycle
    walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).

    Args:
        n: how many; at least 1, below 2^62.
        seed: chooses the permutation.
    """

    def __init__(self, n: int, seed: int) -> None:
        if not 1 <= n < 2**62:
            raise ValueError(f"a permutation needs 1 <= n < 2^62, got {n}")
        self.n = n
        self._b = math.isqrt(n - 1) + 1
        self._a = -(-n // self._b)
        steps = np.arange(1, ROUNDS + 1, dtype=np.uint64) * 0x9E3779B97F4A7C15
        self._keys = _hash(steps + seed % 2**64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the values (same shape, int64) at `positions`, each in 0 .. n - 1."""
        values = self._rounds(np.asarray(positions).astype(np.uint64))
        while (outside := values >= self.n).any():
            values[outside] = self._rounds(values[outside])
        return values.astype(np.int64)

    def _rounds(self, values: np.ndarray) -> np.ndarray:
        left, right = np.divmod(values, self._b)
        for even, odd in self._keys.reshape(-1, 2):
            left = (left + _hash(right + even) % self._a) % self._a
            right = (right + _hash(left + odd) % self._b) % self._b
        return left * self._b + right


def _hash(words: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 of each word (uint64)."""
    words = (words ^ (words >> 30)) * 0xBF58476D1CE4E5B9
    words = (words ^ (words >> 27)) * 0x94D049BB133111EB
    return words ^ (words >> 31)


def in_order(indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (n,) sorted, and the place of each in that: sorted[place] = indices."""
    ordered, order = indices.sort()
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return ordered, places


class WindowOrder:
    """indices(step) -> (batch_size,) token indices, a function of (seed, step) alone.

    Every epoch is a permutation of all tokens: its blocks of `block_tokens` consecutive tokens in
    random order, cut into windows of nearly equal size, at most `window_tokens` and a block, each
    shuffled token by token. Epochs and windows follow each other without a seam: a batch may end
    one and begin the next. What fits one window is shuffled as a whole.

    Memory is O(window_tokens).

    Args:
        num_tokens: tokens of an epoch.
        batch_size: tokens of a step.
        seed: decides the order.
        window_tokens: tokens that are shuffled together.
        block_tokens: tokens that are read together; at most window_tokens.
    """

    def __init__(
        self, num_tokens: int, batch_size: int, seed: int, window_tokens: int, block_tokens: int
    ) -> None:
        self.num_tokens, self.batch_size, self.seed = num_tokens, batch_size, seed
        self.block_tokens = block_tokens
        self.num_windows = -(-num_tokens // window_tokens)
        self._num_blocks = -(-num_tokens // block_tokens)
        self._cached = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Return the token indices of a step."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while position < stop:
            window = self.window_at(position)
            start = self.start(window)
            pieces.append(self.tokens(window)[position - start : stop - start])
            position += len(pieces[-1])
        return torch.cat(pieces)

    def window_at(self, position: int) -> int:
        """Return the window that a position is in; both are counted over all epochs."""
        epoch, offset = divmod(position, self.num_tokens)
        # The last that starts at or before it; positions of an epoch count in blocks.
        block = offset // self.block_tokens
        return epoch * self.num_windows + ((block + 1) * self.num_windows - 1) // self._num_blocks

    def start(self, window: int) -> int:
        """Return the position at which a window starts, counted over all epochs."""
        epoch, window = divmod(window, self.num_windows)
        return epoch * self.num_tokens + self._first_block(window) * self.block_tokens

    def tokens(self, window: int) -> Tensor:
        """Return the token indices of a window, in the order in which they are used."""
        cached, tokens = self._cached  # read at once: another thread may read ahead
        if window != cached:
            epoch, part = divmod(window, self.num_windows)
            seed = mixed(self.seed, epoch, part)
            if self.num_windows == 1:
                tokens = shuffled(self.num_tokens, seed)
            else:
                tokens = self._read(epoch, part)
                tokens = tokens[shuffled(len(tokens), seed)]
            self._cached = window, tokens
        return tokens

    def _first_block(self, window: int) -> int:
        return window * self._num_blocks // self.num_windows

    def _read(self, epoch: int, window: int) -> Tensor:
        """Return the tokens of a window, block by block."""
        blocks = np.arange(self._first_block(window), self._first_block(window + 1))
        # A shorter last block stays last, so that windows start at multiples of block_tokens.
        num_full = self.num_tokens // self.block_tokens
        full = blocks < num_full
        blocks[full] = Permutation(num_full, mixed(self.seed, epoch))(blocks[full])
        first = torch.from_numpy(blocks) * self.block_tokens
        tokens = (first[:, None] + torch.arange(self.block_tokens)).flatten()
        return tokens[tokens < self.num_tokens]
