"""Reads the shards of a `harvest` as one long sequence of tokens.

Only the tokens that are asked for are read, into memory that belongs to the caller; each is
compared with its checksum on the way. Files are not mapped: with the large pages of a modern
page cache, a thousand scattered tokens map a gigabyte, which then counts as this process's memory.
"""

import bisect
import collections
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ssae.activation.order import in_order
from ssae.activation.shards import Checksum, Tokens, header, shard_bytes, shard_name
from ssae.artifact.manifest import is_as_written
from ssae.artifact.store import Artifact

OPEN_SHARDS = 256
"""Files open at a time: a process may have 1024."""
CHUNK_TOKENS = 4096
"""Read in one go at most, and checked at a time."""
READERS = 4
"""Threads: each waits for the disk, or for pages of memory to be cleared, and holds no lock."""
GAP_BYTES = 2**14
"""Tokens this close are read in one go, with what lies between them."""

_Columns = tuple[Tensor, Tensor]


class Activations:
    """A harvest artifact; see `ssae.activation.shards` for the files.

    num_tokens, d_in, dtype   of the activations x
    mean (d_in,), variance    E x and E||x - mean||^2
    mean_norm                 E||x||
    token_counts              (vocab_size,) int64 occurrences of each token type

    Raises:
        ValueError: now or when tokens are read: a file is not what was written; names it.
    """

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        self.artifact = artifact
        self.num_tokens: int = manifest["num_tokens"]
        self.d_in: int = manifest["d_in"]
        self.dtype: torch.dtype = getattr(torch, manifest["dtype"])
        self.variance: float = manifest["variance"]
        self.mean_norm: float = manifest["mean_norm"]
        path = artifact.path / "statistics.safetensors"
        if not is_as_written(path, manifest["files"][path.name]):
            raise artifact.damaged(path.name)
        statistics = load_file(path)
        self.mean, self.token_counts = statistics["mean"], statistics["token_counts"]
        self._sizes: list[int] = manifest["shard_sizes"]
        self._ends: list[int] = list(itertools.accumulate(self._sizes))
        self._checksum = Checksum(self.d_in, self.dtype)
        self._lock = threading.Lock()
        self._files: dict[int, tuple[IO[bytes], tuple[int, int]]] = {}
        for number, size in enumerate(self._sizes):
            self._check_size(artifact.path / shard_name(number), size)

    def __len__(self) -> int:
        return self.num_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return Activations, (self.artifact,)  # a process that is sent activations opens its own

    def rows(self, indices: Tensor) -> Tokens:
        """Return the tokens at `indices` (n,), in that order.

        Raises:
            ValueError: a token is not what was written.
        """
        ordered, places = in_order(indices)
        return Tokens(*(column.index_select(0, places) for column in self.ordered_rows(ordered)))

    def ordered_rows(self, indices: Tensor) -> Tokens:
        """Return the tokens at increasing `indices` (n,): `rows` without putting them in order."""
        out, parts = self._room(len(indices)), [[]]
        for span in self._spans(indices):
            if parts[-1] and span[1] - parts[-1][0][0] > CHUNK_TOKENS:
                parts.append([])
            parts[-1].append(span)

        def fill(spans: list[list[int]]) -> None:
            self._fill(out, indices, spans)

        if len(parts) == 1:
            fill(parts[0])
        else:
            with ThreadPoolExecutor(READERS, "reader", torch.set_num_threads, (1,)) as readers:
                collections.deque(readers.map(fill, parts), maxlen=0)
        return _tokens(*out)

    def _fill(self, out: _Columns, indices: Tensor, spans: list[list[int]]) -> None:
        """Read consecutive spans to their places in `out`, and check them."""
        for start, stop, first, length, is_complete in spans:
            if is_complete:
                self._read(first, length, out, start)
            else:
                with_gaps = self._room(length)
                self._read(first, length, with_gaps, 0)
                for column, rows in zip(out, with_gaps, strict=True):
                    column[start:stop] = rows[indices[start:stop] - first]
        if spans:
            read = slice(spans[0][0], spans[-1][1])
            self._check(out[0][read], out[1][read], indices[read])  # still in the cache

    def slice(self, start: int, stop: int) -> Tokens:
        """Return the tokens start <= i < stop, in harvest order; there may be fewer."""
        return self.ordered_rows(torch.arange(start, max(start, min(stop, self.num_tokens))))

    def where(self, index: int) -> str:
        """Return the place of a token in the files and in the text, for messages."""
        number, found = self._shard_of(index), self._room(1)
        self._read(index, 1, found, 0)
        _, document, position, _ = found[1][0].tolist()
        local = index - self._start(number)
        return f"{shard_name(number)}, token {local} (document {document}, position {position})"

    def _spans(self, ordered: Tensor) -> list[list[int]]:
        """Return what to read in one go: [start, stop) in `ordered`, first token, how many.

        And whether all of these, each once, are what is in `ordered`.
        """
        gap = GAP_BYTES // (self.d_in * self.dtype.itemsize)
        shards = torch.bucketize(ordered, torch.tensor(self._ends), right=True)
        chunks = ordered // CHUNK_TOKENS
        steps = ordered.diff()
        heads = torch.ones(len(ordered), dtype=torch.bool)
        heads[1:] = (steps > gap + 1) | (shards.diff() > 0) | (chunks.diff() > 0)
        starts = heads.nonzero()[:, 0]
        stops = torch.cat([starts[1:], torch.tensor([len(ordered)])])[: len(starts)]
        first, lengths = ordered[starts], ordered[stops - 1] - ordered[starts] + 1
        uneven = torch.zeros(len(ordered), dtype=torch.int64)
        uneven[1:] = ((steps != 1) & ~heads[1:]).cumsum(0)
        is_complete = uneven[stops - 1] == uneven[starts]
        return torch.stack([starts, stops, first, lengths, is_complete], dim=1).tolist()

    def _read(self, first: int, num_tokens: int, room: _Columns, place: int) -> None:
        """Read consecutive tokens of one shard to a place in `room`, unchecked."""
        number = self._shard_of(first)
        file, starts = self._file(number)
        local = first - self._start(number)
        for column, start in zip(room, starts, strict=True):
            into = column[place : place + num_tokens].view(torch.uint8).numpy().reshape(-1).data
            at = start + local * (len(into) // num_tokens)
            while into:  # Linux gives 2 GiB at most
                if not (num_read := os.preadv(file.fileno(), [into], at)):
                    raise self.artifact.damaged(f"{shard_name(number)}: it ends too early")
                into, at = into[num_read:], at + num_read

    def _check(self, activations: Tensor, origins: Tensor, indices: Tensor) -> None:
        found = self._checksum.of_activations(activations)
        found += self._checksum.of_origins(origins[:, :3], indices)
        if not torch.equal(found, origins[:, 3]):
            index = int(indices[(found != origins[:, 3]).nonzero()[0]])
            raise self.artifact.damaged(f"{self.where(index)}: not what was written")

    def _room(self, num_tokens: int) -> _Columns:
        """Return room for activations (num_tokens, d_in) and origins (num_tokens, 4)."""
        activations = torch.empty(num_tokens, self.d_in, dtype=self.dtype)
        return activations, torch.empty(num_tokens, 4, dtype=torch.int32)

    def _shard_of(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def _start(self, number: int) -> int:
        return self._ends[number] - self._sizes[number]

    def _file(self, number: int) -> tuple[IO[bytes], tuple[int, int]]:
        """Return an open shard, and where in it activations and origins start."""
        with self._lock:
            found = self._files.get(number)
            if found is None:
                if len(self._files) >= OPEN_SHARDS:
                    del self._files[next(iter(self._files))]
                found = self._files[number] = self._open(number)
        return found

    def _open(self, number: int) -> tuple[IO[bytes], tuple[int, int]]:
        path, size = self.artifact.path / shard_name(number), self._sizes[number]
        self._check_size(path, size)
        file = path.open("rb", buffering=0)
        expected = header(size, self.d_in, self.dtype)
        if file.read(len(expected)) != expected:
            raise self.artifact.damaged(f"{path.name}: its header is not what was written")
        return file, (len(expected) + 16 * size, len(expected))

    def _check_size(self, path: Path, num_tokens: int) -> None:
        expected = shard_bytes(num_tokens, self.d_in, self.dtype)
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            raise self.artifact.damaged(f"{path.name}: {found} bytes instead of {expected}")


def _tokens(activations: Tensor, origins: Tensor) -> Tokens:
    return Tokens(activations, *origins[:, :3].T.contiguous())
