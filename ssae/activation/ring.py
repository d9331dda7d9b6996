"""Windows of activations in memory: written by the language model, read in order by training.

    lane 0   slot A: read here ->  | slot B: being written |
    lane 1   slot A: read here ->  | slot B: written       |

With a thread, every lane has two slots and the language model runs up to two windows ahead; in turn
with training it has one, written when the last one has been read.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import torch
from torch import Tensor

from ssae.activation.capture import capture_text, not_finite, origins
from ssae.activation.lanes import Window
from ssae.activation.plan import places_of
from ssae.activation.rows import Rows, batches_of
from ssae.activation.shards import Tokens
from ssae.activation.worker import Worker
from ssae.language_model.frozen import LanguageModel


class Slot:
    """Room for one window."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.window: Window | None = None
        self.activations: Tensor | None = None
        """(capacity, d_in) in the model's dtype, on the device of the hookpoint."""
        self.origins: Tensor = torch.empty(0)
        """(3, capacity) int32: token ids, documents, positions."""

    def put(self, places: Tensor, x: Tensor, origins: Tensor) -> None:
        """Write tokens x (n, d_in) with origins (n, 3) to their places (n,)."""
        if self.activations is None:
            self.activations = x.new_empty((self.capacity, x.shape[1]))
            self.origins = origins.new_empty((3, self.capacity), device=x.device)
        places = places.to(x.device)
        self.activations.index_copy_(0, places, x)
        self.origins.index_copy_(1, places, origins.T.to(x.device))

    def tokens(self, start: int, stop: int) -> Tokens:
        """Return places start .. stop - 1 of the window, uncopied."""
        assert self.activations is not None
        return Tokens(self.activations[start:stop], *self.origins[:, start:stop].unbind())


class Writer:
    """Runs the language model over the rows of a window."""

    def __init__(self, rows: Rows, lm: LanguageModel, hookpoint: str, batch_tokens: int) -> None:
        self.rows, self.lm, self.hookpoint, self.batch_tokens = rows, lm, hookpoint, batch_tokens

    @torch.no_grad()
    def write(self, window: Window, slot: Slot, stop: threading.Event) -> None:
        """Put every token of the window in its place; what results is a function of the window.

        Args:
            window: to write.
            slot: where to.
            stop: when set, the rest is left out.

        Raises:
            CancelledError: `stop` was set.
            ValueError: an activation is not finite.
        """
        slot.window = window
        shuffled, finite = window.places(), []
        for chosen in batches_of(self.rows, window.row_ids, self.batch_tokens):
            if stop.is_set():
                raise CancelledError  # nobody may read the half of it
            batch = self.rows.batch(chosen)
            x = capture_text(self.lm, batch, [self.hookpoint])[self.hookpoint]
            places = shuffled[places_of(self.rows, window.row_ids, chosen)]
            slot.put(places, x, origins(batch))
            finite.append(x.isfinite().all())
        if not torch.stack(finite).all():  # the one host-device sync of a window
            self._refuse(slot.tokens(0, window.num_tokens), window)
        self.rows.forget()

    def _refuse(self, tokens: Tokens, window: Window) -> None:
        row = int((~tokens.activations.isfinite()).any(1).nonzero()[0])
        origin = torch.stack([column[row] for column in tokens[1:]])
        which = f"tokens {window.start:,} to {window.start + window.num_tokens:,} of its stream"
        raise not_finite(f"{self.hookpoint}, {which}", origin, tokens.activations.dtype)


class Lane:
    """The tokens of one lane, from `position` on."""

    def __init__(
        self, plan: Iterator[Window], position: int, writer: Writer, worker: Worker
    ) -> None:
        self._plan = itertools.dropwhile(lambda w: w.start + w.num_tokens <= position, plan)
        self._position, self._writer, self._worker = position, writer, worker
        self._ahead: deque[tuple[Slot, Callable[[], Any]]] = deque()
        self._slot: Slot | None = None

    def fill(self, slot: Slot) -> None:
        """Have the next window written to a slot, which is read after those given before."""

        def write(stop: threading.Event) -> None:
            # Here and not before: at the start of an epoch planning a window takes time.
            self._writer.write(next(self._plan), slot, stop)

        self._ahead.append((slot, self._worker.submit(write)))

    def take(self, num_tokens: int) -> Iterator[Tokens]:
        """Yield the next tokens in pieces, which are good until tokens are taken again."""
        while num_tokens:
            if self._slot is None:
                self._slot, wait = self._ahead.popleft()
                wait()
            window = self._slot.window
            assert window is not None
            offset = self._position - window.start
            piece = self._slot.tokens(offset, min(offset + num_tokens, window.num_tokens))
            num_tokens -= len(piece.token_ids)
            self._position += len(piece.token_ids)
            if self._position == window.start + window.num_tokens:
                piece = Tokens(*(column.clone() for column in piece))
                self.fill(self._slot)
                self._slot = None
            yield piece
