"""Blocks: what a part of the pool is read in, filtered, and handed on with.

A part (a file) is cut into blocks of BLOCK_DOCUMENTS documents, whole and empty ones included, so
that an interrupted pass goes on in the middle of a large file. What is made of a block carries its
name, and says whether the part ends with it:

    00003_00007.<suffix>       part 3, block 7
    00003_00008_end.<suffix>   the last one
"""

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import torch
from torch.utils.data import IterableDataset

from ssae.corpus.base import Corpus, short_fingerprint
from ssae.corpus.part import Part

BLOCK_DOCUMENTS = 1024
"""What an interruption costs at most: an encoder on a CPU takes seconds for it."""


class Entry(NamedTuple):
    """A document of a block."""

    row: int
    """Its number in the part."""
    text: str
    source: str
    fingerprint: int
    """64 bits, the same for texts that differ in case and white space only."""


class Block(NamedTuple):
    """The documents of a block that count, in the order of the part."""

    part: int
    number: int
    ends_part: bool
    num_read: int
    pool: list[Entry]
    held_out: list[tuple[str, Entry]]
    """(split, document): those of the pool's text that belong to seeds or tests."""

    @property
    def name(self) -> str:
        """The stem of the files that are made of it."""
        return block_name(self.part, self.number) + ("_end" if self.ends_part else "")


def block_name(part: int, number: int) -> str:
    """Return the start of the names of a block's files."""
    return f"{part:05d}_{number:05d}"


def find_blocks(folder: Path, suffix: str) -> dict[tuple[int, int], Path]:
    """Return {(part, number): file} of the blocks in a folder, in order."""
    found = {}
    for file in sorted(folder.glob(f"[0-9]*_[0-9]*{suffix}")):
        part, number = file.name.removesuffix(suffix).removesuffix("_end").split("_")
        found[int(part), int(number)] = file
    return found


def whole_parts(files: Mapping[tuple[int, int], Path]) -> set[int]:
    """Return the parts of which every block is there."""
    numbers: dict[int, set[int]] = {}
    ends = {}
    for (part, number), file in files.items():
        numbers.setdefault(part, set()).add(number)
        if "_end." in file.name:
            ends[part] = number
    return {part for part, end in ends.items() if len(numbers[part]) == end + 1}


class BlockWriter:
    """Makes one artifact of the blocks of a pass; rank 0 calls `check` and `seal`."""

    def done(self) -> dict[tuple[int, int], Path]:
        """Return {(part, number): file} of the blocks that are there."""
        raise NotImplementedError

    def check(self) -> None:
        """Refuse what would fail at the end, before the hours that a pass may take."""

    def write(self, block: Block) -> None:
        """Write the file of one block."""
        raise NotImplementedError

    def seal(self) -> dict[str, Any]:
        """End the artifact, all blocks being there; return the manifest's entries."""
        raise NotImplementedError


class Blocks(IterableDataset):
    """The blocks that one rank reads, for a DataLoader without batches.

    Its worker processes share the parts. Ranks share the parts too where there are enough of them,
    else the blocks of each part, which then every rank reads through.

    Args:
        corpus: says which documents count.
        parts: of the pool.
        done: (part, number) of blocks that are not needed.
        whole: parts that need not be read at all.
        rank: of this process.
        world_size: number of ranks.
    """

    def __init__(
        self,
        corpus: Corpus,
        parts: Sequence[Part],
        done: Iterable[tuple[int, int]],
        whole: Iterable[int],
        rank: int,
        world_size: int,
    ) -> None:
        self.corpus, self.parts = corpus, parts
        self.done, self.whole = frozenset(done), frozenset(whole)
        self.rank, self.world_size = rank, world_size
        self.shares_parts = len(parts) < world_size

    def __iter__(self) -> Iterator[Block | Exception]:
        """Yield the blocks; an error too, which a DataLoader would wrap in a trace of its own."""
        try:
            yield from self._own_blocks()
        except (ValueError, OSError) as error:
            yield error

    def _own_blocks(self) -> Iterator[Block]:
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        for part in self.own_parts()[worker::num_workers]:
            yield from self._blocks(part)

    def own_parts(self) -> Sequence[int]:
        """Return the parts that this rank has to read."""
        first, step = (0, 1) if self.shares_parts else (self.rank, self.world_size)
        every = range(first, len(self.parts), step)
        return [part for part in every if part not in self.whole]

    def _blocks(self, part: int) -> Iterator[Block]:
        number = num_read = 0
        pool: list[Entry] = []
        held_out: list[tuple[str, Entry]] = []
        wanted = self._is_wanted(part, 0)
        for row, document in enumerate(self.parts[part].documents()):
            if num_read == BLOCK_DOCUMENTS:
                if wanted:
                    yield Block(part, number, False, num_read, pool, held_out)
                number, num_read, pool, held_out = number + 1, 0, [], []
                wanted = self._is_wanted(part, number)
            num_read += 1
            if not wanted:
                continue
            text, source = document["text"], document["source"]
            split = self.corpus.split_of(document)
            if split == "pool" and self.corpus.fits(text):
                pool.append(Entry(row, text, source, short_fingerprint(text)))
            elif split != "pool" and len(text) >= self.corpus.min_characters:
                held_out.append((split, Entry(row, text, source, short_fingerprint(text))))
        if wanted:
            yield Block(part, number, True, num_read, pool, held_out)

    def _is_wanted(self, part: int, number: int) -> bool:
        mine = not self.shares_parts or number % self.world_size == self.rank
        return mine and (part, number) not in self.done


class StoredBlocks(Blocks):
    """The blocks of a corpus that keeps text, from its files instead of its parts.

    Args:
        files: {(part, number): parquet file with row, text, source and fingerprint}.
        others: of Blocks.
    """

    def __init__(self, files: Mapping[tuple[int, int], Path], *others: Any) -> None:
        super().__init__(*others)
        self.files = files

    def _blocks(self, part: int) -> Iterator[Block]:
        for (of_part, number), file in self.files.items():
            if of_part == part and self._is_wanted(part, number):
                table = pyarrow.parquet.read_table(file, columns=list(Entry._fields))
                pool = [Entry(**row) for row in table.to_pylist()]
                yield Block(part, number, "_end." in file.name, len(pool), pool, [])


def in_worker(_: Any) -> None:
    """Leave signals to the process that reads what this one sends, and which ends this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
