"""Batches that the language model makes while the SAE trains; activations never touch the disk.

Which text a step reads is laid down in lanes.py. Every lane has slots for windows: training reads
one while the language model fills the next, each token straight to its shuffled place. A run that
continues computes the windows of its step again, with the same rows in the same forward passes, so
that it goes on with the same bits.
"""

import dataclasses
import logging
from typing import Any

import torch

from ssae.activation.lanes import windows
from ssae.activation.reader import Activations
from ssae.activation.ring import Lane, Slot, Writer
from ssae.activation.rows import Rows
from ssae.activation.shards import Tokens
from ssae.activation.source import Source, Supply
from ssae.activation.worker import Background, InTurn, Worker
from ssae.harvest import check_model
from ssae.language_model.frozen import LanguageModel
from ssae.mix import documents_for
from ssae.settings import check_least, check_types
from ssae.tokenise import tokenise

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream(Supply):
    """Batches straight from the language model: `activation=stream`.

    Args:
        window_tokens: tokens that are shuffled together, over all lanes.
        lanes: independent sequences of text that every batch draws from alike; what ranks share.
        calibration_tokens: of random text that is harvested first, for scale, initial weights and
            recycling.
        lm_threads: CPU threads that the language model gets beside training; 0: it takes turns with
            training, on all of them; null decides.
    """

    window_tokens: int
    lanes: int
    calibration_tokens: int
    lm_threads: int | None = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "activation.")
        bounds = {
            "lanes": (1, 8),
            "window_tokens": (self.lanes, 131_072),
            "calibration_tokens": (1, 131_072),
        }
        check_least(self, bounds, "activation.")
        threads = self.lm_threads
        if threads is not None and (type(threads) is not int or threads < 0):
            raise ValueError(
                f"activation.lm_threads must be null or a whole number of at least 0, got "
                f"{threads!r}; set activation.lm_threads=null"
            )

    @property
    def sample_tokens(self) -> int:
        """Only the calibration sample is harvested."""
        return self.calibration_tokens

    def check_batch(self, batch_size_tokens: int) -> None:
        """Refuse lanes that cannot share a batch evenly."""
        if batch_size_tokens % self.lanes:
            raise ValueError(
                f"activation.lanes ({self.lanes}) must divide training.batch_size_tokens "
                f"({batch_size_tokens}); set activation.lanes="
                f"{_largest_divisor(batch_size_tokens, self.lanes)}"
            )

    def check_rows(self, context_length: int) -> None:
        """Refuse windows in which a lane has no whole row: nothing but its tokens is shuffled."""
        least = self.lanes * context_length
        if self.window_tokens < least:
            raise ValueError(
                "activation.window_tokens must be at least activation.lanes * context_length "
                f"({self.lanes} * {context_length} = {least}), got {self.window_tokens}: a lane "
                "shuffles no less than a row; set activation.window_tokens="
                f"{max(131_072, 8 * least)}"
            )

    def source(self, study: Any, arm: str, activations: Activations) -> Source:
        """Return the batches that the study's language model will make of the arm's documents."""
        rows = Rows(tokenise(study, documents_for(study, arm)))
        token_bytes = activations.d_in * activations.dtype.itemsize
        log.info(
            "%s: the language model makes activations of %s tokens at a time, %.2f GB",
            arm, f"{self.window_tokens:,}", self.window_tokens * token_bytes / 1e9,
        )  # fmt: skip
        if self.window_tokens < self.lanes * study.harvest_batch_tokens:
            log.warning(
                "a forward pass has %d tokens instead of harvest_batch_tokens=%d; set "
                "activation.window_tokens=%d to fill it",
                self.window_tokens // self.lanes,
                study.harvest_batch_tokens,
                self.lanes * study.harvest_batch_tokens,
            )
        return StreamSource(
            rows,
            study.language_model,
            check_model(study)[0],
            self,
            batch_size=study.training.batch_size_tokens,
            lm_batch_tokens=study.harvest_batch_tokens,
            seed=study.seed,
        )


class StreamSource(Source):
    """Makes batches in step order; another step than the next one is computed from its windows on.

    Args:
        rows: of all text.
        lm: makes the activations.
        hookpoint: where.
        settings: of the stream.
        batch_size: tokens of a step.
        lm_batch_tokens: tokens of a forward pass.
        seed: decides the order.

    Raises:
        ValueError: the lanes cannot share a batch, or the text, evenly.
    """

    def __init__(
        self,
        rows: Rows,
        lm: LanguageModel,
        hookpoint: str,
        settings: Stream,
        *,
        batch_size: int,
        lm_batch_tokens: int,
        seed: int,
    ) -> None:
        self.rows, self.settings, self.batch_size, self.seed = rows, settings, batch_size, seed
        self.num_tokens = rows.num_tokens
        self.device = torch.device(lm.device_used)
        self.pin_memory = self.device.type == "cpu"
        self._writer = Writer(rows, lm, hookpoint, lm_batch_tokens)
        self._worker: Worker | None = None
        self._lanes: list[Lane] = []
        self._next: tuple[int, int, int] | None = None
        settings.check_batch(batch_size)
        if rows.num_rows < settings.lanes:
            raise ValueError(
                f"activation.lanes ({settings.lanes}) must not exceed the rows of text "
                f"({rows.num_rows}); set activation.lanes="
                f"{_largest_divisor(batch_size, rows.num_rows)} or a larger token budget"
            )

    def check_ranks(self, size: int) -> None:
        """Refuse ranks that cannot share the lanes."""
        lanes = self.settings.lanes
        if self.batch_size % size:
            raise ValueError(
                f"batch_size_tokens ({self.batch_size}) must be a multiple of the number of ranks "
                f"({size}); set training.batch_size_tokens="
                f"{size * max(1, self.batch_size // size)} activation.lanes={size}"
            )
        if lanes % size:
            share = self.batch_size // size
            fitting = size * _largest_divisor(share, max(1, lanes // size))
            raise ValueError(
                f"the number of ranks ({size}) must divide activation.lanes ({lanes}); "
                f"set activation.lanes={fitting}"
            )

    def batch(self, step: int, rank: int, size: int) -> Tokens:
        """Return the rank's slice of a step.

        Raises:
            ValueError: an activation is not finite.
        """
        if (step, rank, size) != self._next:
            self._start(step, rank, size)
        self._next = None  # until all of the batch is there
        share = self.batch_size // self.settings.lanes
        pieces = [piece for lane in self._lanes for piece in lane.take(share)]
        self._next = step + 1, rank, size
        return Tokens(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))

    def where(self, step: int, rank: int, size: int, row: int) -> str:
        """Return the document and position of a row; may compute its windows again."""
        tokens = self.batch(step, rank, size)
        return f"document {int(tokens.document_ids[row])}, position {int(tokens.positions[row])}"

    def close(self) -> None:
        """Stop the language model, in the middle of a window if need be, and free the windows."""
        if self._worker is not None:
            self._worker.close()
        self._worker, self._lanes, self._next = None, [], None

    def _start(self, step: int, rank: int, size: int) -> None:
        """Open the rank's lanes at a step."""
        self.close()
        self.check_ranks(size)
        num_lanes = self.settings.lanes
        lane_window_tokens = self.settings.window_tokens // num_lanes
        self._worker = worker = worker_for(self.device, self.settings.lm_threads)
        for lane in range(rank * num_lanes // size, (rank + 1) * num_lanes // size):
            plan = windows(
                self.rows,
                lane=lane,
                num_lanes=num_lanes,
                lane_window_tokens=lane_window_tokens,
                seed=self.seed,
            )
            position = step * (self.batch_size // num_lanes)
            self._lanes.append(Lane(plan, position, self._writer, worker))
        longest = int(self.rows.text_tokens.max())
        capacity = min(lane_window_tokens + longest, self.num_tokens)
        for _ in range(worker.num_slots):  # the first window of every lane first
            for lane in self._lanes:
                lane.fill(Slot(capacity))


def _largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most `most`."""
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def worker_for(device: torch.device, lm_threads: int | None) -> Worker:
    """Return when the language model runs: beside training on a GPU, in turn with it on a CPU.

    On the same cores both are slower side by side than one after the other.
    """
    if lm_threads is None:
        lm_threads = 0 if device.type == "cpu" else 1
    if not lm_threads:
        return InTurn()
    others = torch.get_num_threads() - lm_threads if device.type == "cpu" else None
    return Background(device, lm_threads, others)
