"""Writes activation shards: each is filled in place while the one before it goes to disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from ssae.activation.capture import not_finite
from ssae.activation.shards import (
    STORED,
    Checksum,
    Finished,
    Sums,
    header,
    shard_name,
    write_finished,
)
from ssae.artifact.manifest import sync

CHUNK_BYTES = 2**23
"""Written and hashed at a time."""


class _Buffer(NamedTuple):
    """Room for the largest shard."""

    activations: Tensor
    """(largest, d_in), as the model gives them."""
    origins: Tensor
    """(largest, 4) int32."""
    checksums: Tensor
    """(largest,) int32, of the activations alone."""


class ShardWriter:
    """Fills one shard after the other, in any order inside a shard.

    Nothing waits for a GPU before `finish`: copies from it are only asked for.

    Args:
        folder: where the shards go.
        hookpoint: for messages.
        largest: tokens of the largest shard; two such shards fit into the buffers.
        d_in: width of activations.
        dtype: of activations.

    Raises:
        ValueError: shards cannot hold the dtype.
    """

    def __init__(
        self, folder: Path, hookpoint: str, largest: int, d_in: int, dtype: torch.dtype
    ) -> None:
        if dtype not in STORED:
            raise ValueError(
                f"hookpoint {hookpoint} gives {dtype}, shards hold "
                f"{', '.join(map(str, STORED))}; set language_model.dtype=float32"
            )
        self.folder, self.hookpoint, self.largest = folder, hookpoint, largest
        self.d_in, self.dtype = d_in, dtype
        self.checksum = Checksum(d_in, dtype)
        self._free: list[_Buffer] = []
        self._thread = ThreadPoolExecutor(1, "shards")
        self._written: Future[None] | None = None

    def start(self, number: int, first_token: int, num_tokens: int) -> None:
        """Begin shard `number`, of the tokens first_token, ... of the harvest."""
        self.number, self.first_token, self.num_tokens = number, first_token, num_tokens
        self.buffer: _Buffer | None = None
        self.sums: Sums | None = None

    def write(self, activations: Tensor, origins: Tensor, places: slice | Tensor) -> None:
        """Add tokens.

        Args:
            activations: (n, d_in), on any device.
            origins: (n, 3) int32 on the CPU: token id, document, position.
            places: of the tokens in the shard, each once; a slice or (n,) int64.
        """
        if activations.device.type not in ("cpu", "cuda"):
            activations = activations.cpu()  # elsewhere there is no float64
        if self.buffer is None:
            self.buffer = self._free.pop() if self._free else self._room(activations.is_cuda)
        x = activations.double()  # once: each reduction would make such a copy of its own
        norms = torch.linalg.vector_norm(x, dim=1)
        sums = Sums(x.sum(0), norms.square().sum(), norms.sum())
        self.sums = sums if self.sums is None else self.sums.plus(sums)
        checksums = self.checksum.of_activations(activations)
        if isinstance(places, slice):
            self.buffer.activations[places].copy_(activations, non_blocking=True)
            self.buffer.checksums[places].copy_(checksums, non_blocking=True)
        else:
            self.buffer.activations.index_copy_(0, places, activations.cpu())
            self.buffer.checksums.index_copy_(0, places, checksums.cpu())
        self.buffer.origins[places, :3] = origins
        self._device = activations.device

    def finish(self) -> None:
        """Hand the shard, whose tokens have all been written, to the background.

        Raises:
            ValueError: an activation is not finite, or the shard before could not be written.
        """
        assert self.buffer is not None
        assert self.sums is not None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        activations, origins, checksums = (column[: self.num_tokens] for column in self.buffer)
        sums = Sums(*(value.cpu() for value in self.sums))
        if not sums.norms.isfinite():
            raise self._not_finite(activations, origins)
        indices = torch.arange(self.first_token, self.first_token + self.num_tokens)
        origins[:, 3] = checksums + self.checksum.of_origins(origins[:, :3], indices)
        self.wait()
        self._written = self._thread.submit(
            _store, self.folder / shard_name(self.number), origins, activations, sums
        )
        self._written_buffer = self.buffer

    def wait(self) -> None:
        """Return when the last finished shard is on disk.

        Raises:
            ValueError: it could not be written.
        """
        if self._written is not None:
            written, self._written = self._written, None
            self._free.append(self._written_buffer)
            written.result()

    def close(self) -> None:
        """End the background thread, which first writes the shard it has begun."""
        self._thread.shutdown(wait=True)

    def _room(self, pinned: bool) -> _Buffer:
        return _Buffer(
            torch.empty(self.largest, self.d_in, dtype=self.dtype, pin_memory=pinned),
            torch.empty(self.largest, 4, dtype=torch.int32),
            torch.empty(self.largest, dtype=torch.int32, pin_memory=pinned),
        )

    def _not_finite(self, activations: Tensor, origins: Tensor) -> ValueError:
        row = int((~torch.isfinite(activations).all(1)).nonzero()[0])
        return not_finite(f"{self.hookpoint}, shard {self.number}", origins[row, :3], self.dtype)


def _store(path: Path, origins: Tensor, activations: Tensor, sums: Sums) -> None:
    """Write a shard under another name, then give it its own, then say so in its .json."""
    unfinished, known = path.with_suffix(".unfinished"), path.with_suffix(".json")
    digest = xxhash.xxh3_128()
    try:
        with unfinished.open("wb") as file:
            # torch would hold the interpreter while it makes bytes of a tensor; numpy's are views.
            for piece in (
                memoryview(header(len(activations), activations.shape[1], activations.dtype)),
                origins.view(torch.uint8).numpy().reshape(-1).data,
                activations.view(torch.uint8).numpy().reshape(-1).data,
            ):
                for start in range(0, len(piece), CHUNK_BYTES):
                    chunk = piece[start : start + CHUNK_BYTES]
                    digest.update(chunk)
                    file.write(chunk)
        sync(unfinished)
        unfinished.rename(path)
        write_finished(known, Finished(digest.hexdigest(), len(origins), sums))
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ValueError(
            f"cannot write {path}: {error.strerror}; make room, or set artifacts=<a larger disk>. "
            "Finished shards are kept: the same command continues"
        ) from error
