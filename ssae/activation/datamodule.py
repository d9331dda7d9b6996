"""Batches of activations in an order that is a function of (seed, step): position is state.

Tokens are shuffled anew every epoch (order.py); epochs follow each other without a seam, and every
token is seen once per epoch. Step s of a run is always the same tokens: resuming needs no buffer or
generator state, and rank r of R reads its R-th of each batch.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssae.activation.order import WindowOrder, in_order
from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens
from ssae.activation.source import Source, Supply, announce_windows
from ssae.activation.worker import Background, InTurn, Worker
from ssae.settings import check_least, check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shards(Supply):
    """Batches from shards on disk: `activation=shards`.

    Args:
        window_tokens: tokens that are shuffled together, and whose activations stay in memory.
        block_tokens: consecutive tokens that a window reads together.
        read_ahead: whether a thread reads the next window meanwhile, which takes the memory of a
            second one; null: beside a GPU. The batches are the same.
    """

    window_tokens: int
    block_tokens: int
    read_ahead: bool | None = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "activation.")
        if self.read_ahead not in (None, True, False):
            raise ValueError(
                f"activation.read_ahead must be null, true or false, got {self.read_ahead!r}; "
                "set activation.read_ahead=null"
            )
        check_least(self, {"window_tokens": (1, 1_048_576)}, "activation.")
        if not 1 <= self.block_tokens <= self.window_tokens:
            raise ValueError(
                "activation.block_tokens must lie between 1 and activation.window_tokens "
                f"({self.window_tokens}), got {self.block_tokens}; set activation.block_tokens="
                f"{min(1024, self.window_tokens)}"
            )

    @property
    def sample_tokens(self) -> None:
        """All text is harvested."""
        return

    def check_batch(self, batch_size_tokens: int) -> None:
        """Any size will do."""

    def worker(self) -> Worker:
        """Return who reads windows."""
        return Background(torch.device("cpu"), 1) if self._reads_ahead else InTurn()

    @property
    def _reads_ahead(self) -> bool:
        return torch.cuda.is_available() if self.read_ahead is None else self.read_ahead

    def source(self, study: Any, arm: str, activations: Activations) -> Source:
        """Return the batches of what was harvested."""
        batch_size = study.training.batch_size_tokens
        announce_windows(arm, activations, self.window_tokens, self._reads_ahead)
        return ShardSource(activations, self, batch_size=batch_size, seed=study.seed)


_Key = tuple[int, int, int]


class _Window(NamedTuple):
    """A rank's share of a window."""

    key: _Key
    """Number of the window, rank, number of ranks."""
    first: int
    """How many of the rank's tokens come before it."""
    tokens: Tokens
    """In the order of the files."""
    places: Tensor
    """(n,) where in `tokens` each is, in the order in which they are used."""


class ShardSource(Source):
    """Reads batches in the order of `WindowOrder`, a window at a time.

    Memory holds the rank's share of one window, of two where a thread reads ahead, however much
    there is on disk.
    """

    pin_memory = True

    def __init__(
        self, activations: Activations, settings: Shards, *, batch_size: int, seed: int
    ) -> None:
        self.activations, self.settings = activations, settings
        self.num_tokens, self.batch_size = len(activations), batch_size
        self.order = WindowOrder(
            len(activations), batch_size, seed, settings.window_tokens, settings.block_tokens
        )
        self._worker: Worker | None = None
        self._ahead: dict[_Key, Callable[[], _Window]] = {}
        self._window: _Window | None = None

    def check_ranks(self, size: int) -> None:
        """Refuse ranks that do not divide the batch."""
        if self.batch_size % size:
            raise ValueError(
                f"batch_size_tokens ({self.batch_size}) must be a multiple of the number of ranks "
                f"({size}); set training.batch_size_tokens={size * max(1, self.batch_size // size)}"
            )

    def batch(self, step: int, rank: int, size: int) -> Tokens:
        """Return the rank's slice of a step.

        Raises:
            ValueError: a token is not what was written.
        """
        share = self.batch_size // size
        position = step * self.batch_size + rank * share
        stop, pieces = position + share, []
        while position < stop:
            window = self._load(self.order.window_at(position), rank, size)
            first = self._num_own(position, rank, size) - window.first
            places = window.places[first : first + stop - position]
            pieces.append(Tokens(*(column.index_select(0, places) for column in window.tokens)))
            position += len(places)
        return pieces[0] if len(pieces) == 1 else Tokens(*map(torch.cat, zip(*pieces, strict=True)))

    def where(self, step: int, rank: int, size: int, row: int) -> str:
        """Return the shard and token of a row."""
        share = self.batch_size // size
        return self.activations.where(int(self.order.indices(step)[rank * share + row]))

    def close(self) -> None:
        """Stop reading ahead, and free the windows."""
        if self._worker is not None:
            self._worker.close()
        self._worker, self._window = None, None
        self._ahead.clear()

    def _num_own(self, position: int, rank: int, size: int) -> int:
        """Return how many positions before `position` belong to the rank."""
        share = self.batch_size // size
        step, offset = divmod(position, self.batch_size)
        return step * share + min(max(offset - rank * share, 0), share)

    def _load(self, number: int, rank: int, size: int) -> "_Window":
        key = (number, rank, size)
        if self._window is None or self._window.key != key:
            if self._worker is None:
                self._worker = self.settings.worker()
            waiting = self._ahead.pop(key, None) or self._submit(self._worker, key)
            self._ahead.clear()
            self._window = None  # before there is another
            self._window = waiting()
            if self._worker.num_slots > 1:
                following = (number + 1, rank, size)
                self._ahead[following] = self._submit(self._worker, following)
        return self._window

    def _submit(self, worker: Worker, key: "_Key") -> Callable[[], "_Window"]:
        number, rank, size = key
        # Where all fits one window, only the order changes from epoch to epoch.
        keeps = self._window is not None and self.order.num_windows == size == 1
        kept = self._window.tokens if self._window is not None and keeps else None

        def read(stop: threading.Event) -> _Window:
            start = self.order.start(number)
            own = self.order.tokens(number)
            if size > 1:
                positions = torch.arange(start, self.order.start(number + 1))
                own = own[positions % self.batch_size // (self.batch_size // size) == rank]
            ordered, places = in_order(own)
            tokens = kept or self.activations.ordered_rows(ordered)
            return _Window(key, self._num_own(start, rank, size), tokens, places)

        return worker.submit(read)


class _Batches(Dataset[Tokens]):
    def __init__(self, source: Source, rank: int, size: int) -> None:
        self.source, self.rank, self.size = source, rank, size

    def __getitem__(self, step: int) -> Tokens:
        return self.source.batch(step, self.rank, self.size)


class _Steps(Sampler[int]):
    """Steps first .. last - 1; counts from 0 because Lightning counts the resumed ones too."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last


class ActivationDataModule(L.LightningDataModule):
    """Serves each rank its slice of the batch of every step.

    Args:
        source: of the batches.
        num_steps: length of the run.

    Raises:
        ValueError: the ranks cannot share a batch evenly.
    """

    def __init__(self, source: Source, num_steps: int) -> None:
        super().__init__()
        self.source, self.num_steps = source, num_steps

    def train_dataloader(self) -> DataLoader[Tokens]:
        """Return the batches from the trainer's current step on."""
        assert self.trainer is not None
        rank, size = self.trainer.global_rank, self.trainer.world_size
        self.source.check_ranks(size)
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(
            _Batches(self.source, rank, size),
            sampler=_Steps(self.trainer.global_step, self.num_steps),
            batch_size=None,
            pin_memory=self.source.pin_memory and on_gpu,
        )

    def where(self, step: int, row: int) -> str:
        """Return where a row of this rank's slice of a step comes from, in words."""
        assert self.trainer is not None
        return self.source.where(step, self.trainer.global_rank, self.trainer.world_size, row)
