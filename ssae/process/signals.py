"""Signals: training ends after its step, with a checkpoint; anything else ends at once.

    SIGINT, SIGTERM    exit code 128 + signal, or 0 with SSAE_REQUEUE=1 in the environment
    SIGUSR1, SIGUSR2   what a scheduler sends before a time limit: exit code 75 (EX_TEMPFAIL of
                       sysexits.h, "try again") of rank 0, which slurm/job.sh requeues a job for

In every case the same command continues.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
AGAIN = 75
"""Exit code of a run that a scheduler warned: it has kept what it did, and wants to go on."""
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
SAME_SECONDS = 1.0
"""Two SIGINTs within this time are one: the terminal's, and the launcher's that passes it on."""


def launched_rank() -> int:
    """Return the rank that torchrun or srun started this process as, without importing torch."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        signum: which.
        message: what has been kept, and how to go on.
    """

    def __init__(
        self,
        signum: int,
        message: str = "interrupted; give the same command again to continue",
    ) -> None:
        super().__init__(signum, message)
        self.signum, self.message = signum, message

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        """The exit code, from which a scheduler's script sees whether to start the run again."""
        if self.signum not in (signal.SIGINT, signal.SIGTERM):
            return AGAIN if launched_rank() == 0 else 0
        return 0 if os.environ.get("SSAE_REQUEUE") == "1" else 128 + self.signum


_taken: list[int] = []


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Handle a signal outside of training."""
    _taken.append(signum)
    raise Interrupted(signum)


def check_interrupted() -> None:
    """Raise Interrupted if a signal did so where it got lost, such as in a `__del__`."""
    if _taken:
        raise Interrupted(_taken[0])


def interrupt_on_signals() -> None:
    """Let the signals end this process in order; those it was told to ignore stay ignored."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, interrupt)


def end_with_launcher() -> None:
    """Have Linux send SIGTERM to this rank when the process that started it ends.

    torchrun that is killed, or gets a signal it does not handle, leaves its ranks running.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def pass_on(stop: Interrupted) -> None:
    """Tell the launcher of this process what ended the run, if it listens to that signal.

    submitit does: it submits its job again, for the same call, and ends the process.
    """
    handler = signal.getsignal(stop.signum)
    if callable(handler) and handler not in (interrupt, signal.default_int_handler):
        signal.raise_signal(stop.signum)


class StopRequest:
    """While entered, a signal is only taken note of.

    On leaving, the handlers from before are back, and a signal that nothing has been done about is
    sent to them. A second SIGINT does not wait: it raises Interrupted where it finds the process.
    """

    signum: int | None = None
    """The first signal that came."""
    honoured: int | None = None
    """The signal for which the run ended, on every rank; set by who ended it."""

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        self._since = 0.0
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for signum in SIGNALS:
                before = signal.getsignal(signum)
                if before is not signal.SIG_IGN:
                    self._before[signum] = before
                    signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)
        if error is None and self.signum is not None and self.honoured is None:
            signal.raise_signal(self.signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._since = signum, now
            if launched_rank() == 0:
                name, again = signal.Signals(signum).name, "SIGINT again stops at once"
                text = f"\nssae: {name}: stopping after this step, with a checkpoint; {again}\n"
                os.write(2, text.encode())  # print may be what was interrupted
        elif signum == signal.SIGINT and now - self._since > SAME_SECONDS:
            raise Interrupted(
                signum, "interrupted at once; the same command continues from the last checkpoint"
            )


@contextlib.contextmanager
def unwrapped_interrupts() -> Iterator[None]:
    """While entered, a KeyboardInterrupt that ends a Trainer's run stays what it is.

    Lightning makes a SystemExit of it and has the process ignore SIGINT, which a disarmed Trainer
    does not take back: what runs afterwards could not be interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)  # Lightning set one: this is the main thread
        raise end.__context__ from None


def disarm(trainer: Any) -> None:
    """Keep Lightning's signal handlers out of a Trainer, and what goes with them.

    They broadcast from inside of the handler, which hangs when only some ranks get the signal, and
    every step waits for a broadcast of rank 0's.
    """
    trainer._signal_connector.register_signal_handlers = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None: ...
