"""Who makes windows of activations, and when: in turn with training, or in the background."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Worker(Protocol):
    """When work that is asked for is done."""

    num_slots: int
    """Windows to keep in memory: one to read, and one more if another can be made meanwhile."""

    def submit(self, work: Callable[[threading.Event], T]) -> Callable[[], T]:
        """Take work, done in the order given; it gives up when its event is set.

        What is returned waits for its end, and returns or raises what it did.
        """
        ...

    def close(self) -> None:
        """End; what is not done yet never will be."""
        ...


class InTurn:
    """Between training steps, when the result is needed."""

    num_slots = 1

    def submit(self, work: Callable[[threading.Event], T]) -> Callable[[], T]:
        """Return what does the work."""
        return lambda: work(threading.Event())

    def close(self) -> None:
        """Nothing runs."""


class Background:
    """A thread of its own; on a GPU, in a CUDA stream of its own.

    Args:
        device: that the work runs on.
        num_threads: CPU threads for the work.
        num_others: CPU threads that the caller has meanwhile; None leaves them as they are.
    """

    num_slots = 2

    def __init__(
        self, device: torch.device, num_threads: int, num_others: int | None = None
    ) -> None:
        self._device, self._stop, self._before = device, threading.Event(), torch.get_num_threads()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Two full teams of OpenMP threads on the same cores spin against each other. A team's size
        # belongs to the thread that leads it, so that this thread and the other have their own.
        self._executor = ThreadPoolExecutor(
            1, "activations", initializer=torch.set_num_threads, initargs=(num_threads,)
        )
        if num_others is not None:
            torch.set_num_threads(max(1, num_others))

    def submit(self, work: Callable[[threading.Event], T]) -> Callable[[], T]:
        """Queue the work.

        Raises:
            CancelledError: it has been closed, perhaps by another thread, just now.
        """
        released = None
        if self._stream is not None:  # what it overwrites may still be being copied
            released = torch.cuda.current_stream(self._device).record_event()
        try:
            return self._executor.submit(self._run, work, released).result
        except RuntimeError:
            if self._stop.is_set():
                raise CancelledError from None
            raise

    def close(self) -> None:
        """Stop the work at its next look at the event, and wait for the thread to end."""
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)

    def _run(self, work: Callable[[threading.Event], T], released: Any) -> T:
        with torch.cuda.stream(self._stream):  # None: no other stream
            if self._stream is not None:
                self._stream.wait_event(released)
            result = work(self._stop)
            if self._stream is not None:
                self._stream.synchronize()
        return result
