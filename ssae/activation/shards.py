"""Activation shards: what `harvest` writes and training reads.

    shard_00000.safetensors   activations (n, d_in) in the model's dtype
                              token_ids, document_ids, positions (n,) int32
    statistics.safetensors    mean (d_in,) float64, token_counts (vocab_size,) int64
    manifest.json             num_tokens, d_in, shard_sizes, variance, mean_norm, hookpoint, ...

Shards are opened memory-mapped; only the rows that are asked for are read.
"""

import bisect
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssae.artifact import Artifact


class Tokens(NamedTuple):
    """Activations and where they come from, one row a token."""

    activations: Tensor
    """(n, d_in) in the model's dtype."""
    token_ids: Tensor
    """(n,) int32 vocabulary ids."""
    document_ids: Tensor
    """(n,) int32 index into the harvested documents."""
    positions: Tensor
    """(n,) int32 position in the model's context."""


class ShardWriter:
    """Collects tokens in one preallocated buffer and writes it whenever it is full.

    Also keeps, in float64: the mean mu, the variance E||x - mu||^2 and the mean norm E||x||.
    """

    def __init__(self, folder: Path, shard_tokens: int, vocab_size: int) -> None:
        self.folder, self.shard_tokens = folder, shard_tokens
        self.buffer: Tokens | None = None
        self.filled = 0
        self.shard_sizes: list[int] = []
        self.token_counts = torch.zeros(vocab_size, dtype=torch.int64)
        self.sum: Tensor = torch.zeros(())
        self.sum_squares = self.sum_norms = 0.0

    def write(self, tokens: Tokens) -> None:
        """Add tokens, in order.

        Raises:
            ValueError: an activation is not finite.
        """
        x = tokens.activations.double()
        squares = x.square().sum(1)
        if not torch.isfinite(squares).all():
            row = int((~torch.isfinite(squares)).nonzero()[0])
            raise ValueError(
                f"the language model gave a non-finite activation for document "
                f"{int(tokens.document_ids[row])} at position {int(tokens.positions[row])}; "
                "try language_model.dtype=float32"
            )
        self.sum = self.sum + x.sum(0)
        self.sum_squares += float(squares.sum())
        self.sum_norms += float(squares.sqrt().sum())
        self.token_counts += torch.bincount(tokens.token_ids, minlength=len(self.token_counts))
        if self.buffer is None:
            self.buffer = Tokens(
                *(t.new_empty((self.shard_tokens, *t.shape[1:]), device="cpu") for t in tokens)
            )
        start = 0
        while start < len(x):
            stop = min(len(x), start + self.shard_tokens - self.filled)
            for column, new in zip(self.buffer, tokens, strict=True):
                column[self.filled : self.filled + stop - start] = new[start:stop]
            self.filled += stop - start
            start = stop
            if self.filled == self.shard_tokens:
                self._flush()

    def close(self) -> dict[str, object]:
        """Write what is left and return the manifest's entries.

        Raises:
            ValueError: there was no token at all.
        """
        if self.filled:
            self._flush()
        num_tokens = sum(self.shard_sizes)
        if num_tokens == 0:
            raise ValueError("nothing to harvest: the documents hold no token of text")
        mean = self.sum / num_tokens
        statistics = {"mean": mean, "token_counts": self.token_counts}
        save_file(statistics, self.folder / "statistics.safetensors")
        assert self.buffer is not None
        return {
            "num_tokens": num_tokens,
            "d_in": len(mean),
            "dtype": str(self.buffer.activations.dtype).removeprefix("torch."),
            "shard_sizes": self.shard_sizes,
            "variance": self.sum_squares / num_tokens - float(mean.square().sum()),
            "mean_norm": self.sum_norms / num_tokens,
        }

    def _flush(self) -> None:
        assert self.buffer is not None
        tensors = {
            name: column[: self.filled].contiguous()
            for name, column in zip(Tokens._fields, self.buffer, strict=True)
        }
        save_file(tensors, self.folder / f"shard_{len(self.shard_sizes):05d}.safetensors")
        self.shard_sizes.append(self.filled)
        self.filled = 0


class Activations:
    """Reads a harvest artifact as one long sequence of tokens."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.num_tokens: int = manifest["num_tokens"]
        self.d_in: int = manifest["d_in"]
        self.variance: float = manifest["variance"]
        self.mean_norm: float = manifest["mean_norm"]
        statistics = load_file(artifact.path / "statistics.safetensors")
        self.mean, self.token_counts = statistics["mean"], statistics["token_counts"]
        self._ends = torch.tensor(manifest["shard_sizes"]).cumsum(0)
        self._starts = [0, *self._ends[:-1].tolist()]
        self._shards = [
            _open(artifact.path / f"shard_{i:05d}.safetensors") for i in range(len(self._starts))
        ]

    def __len__(self) -> int:
        return self.num_tokens

    def rows(self, indices: Tensor) -> Tokens:
        """Return the tokens at `indices` (n,), in that order."""
        shard_of_row = torch.bucketize(indices, self._ends, right=True)
        first = self._shards[0]
        out = Tokens(*(column.new_empty((len(indices), *column.shape[1:])) for column in first))
        for shard in shard_of_row.unique().tolist():
            chosen = (shard_of_row == shard).nonzero()[:, 0]
            local = indices[chosen] - self._starts[shard]
            for column, source in zip(out, self._shards[shard], strict=True):
                column[chosen] = source[local]
        return out

    def slice(self, start: int, stop: int) -> Tokens:
        """Return the tokens start <= i < stop, in harvest order."""
        stop = min(stop, self.num_tokens)
        pieces = []
        while start < stop:
            shard = bisect.bisect_right(self._starts, start) - 1
            offset = start - self._starts[shard]
            end = min(stop, int(self._ends[shard]))
            pieces.append([column[offset : offset + end - start] for column in self._shards[shard]])
            start = end
        return Tokens(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))


def _open(path: Path) -> Tokens:
    with safe_open(path, framework="pt") as file:  # tensors stay mapped to the file
        return Tokens(*(file.get_tensor(name) for name in Tokens._fields))
