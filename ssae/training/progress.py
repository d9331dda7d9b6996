"""How far training is: a bar in a terminal, lines in a log."""

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.callbacks import TQDMProgressBar

from ssae.report.table import spell

log = logging.getLogger(__name__)

NUM_LINES = 20
"""Of a run in a file, where a line cannot be written over."""
SECONDS = 5.0, 60.0
"""Between two of them at least, however short the run is, and at most, however long."""


class ProgressBar(TQDMProgressBar):
    """Lightning's, on one line: named after the arm, without the logger's version number.

    A run that continues begins at the step it has reached, so that rates are those of new steps.
    """

    def __init__(self, arm_name: str, num_steps: int) -> None:
        super().__init__()
        self.arm_name, self.num_steps = arm_name, num_steps

    def on_train_start(self, *args: Any) -> None:
        """Begin where the run begins; one that continues is inside of an epoch, to Lightning."""
        super().on_train_start(*args)
        self._begin(args[0])

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Keep what Lightning sets anew at the start of an epoch."""
        super().on_train_epoch_start(trainer, *args)
        self._begin(trainer)

    def _begin(self, trainer: L.Trainer) -> None:
        bar = self.train_progress_bar
        bar.reset(self.num_steps)
        bar.initial = bar.n = trainer.global_step
        bar.set_description(self.arm_name)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the line to what is said of the error."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        return _shown(super().get_metrics(trainer, pl_module))


class ProgressLines(LightningBar):
    """A line of the log now and then: step, rate, time left, and its numbers."""

    def __init__(self, arm_name: str, num_steps: int) -> None:
        super().__init__()
        self.arm_name, self.num_steps = arm_name, num_steps
        self._first = self._start = self._said = 0.0

    def disable(self) -> None:
        """Do nothing: Lightning asks for that on the other ranks, whose log is silent."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count, where the run begins or continues."""
        self._first, self._start = trainer.global_step, time.perf_counter()
        self._said = self._start

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Say how far it is."""
        step = trainer.global_step
        now = time.perf_counter()
        least, most = SECONDS
        silent = now - self._said
        due = step % max(1, self.num_steps // NUM_LINES) == 0 and silent >= least
        if not due and silent < most and step != self.num_steps:
            return
        self._said = now
        rate = (step - self._first) / max(now - self._start, 1e-9)
        shown = _shown(self.get_metrics(trainer, trainer.lightning_module))
        numbers = [f"{k} {v if isinstance(v, int) else spell(v)}" for k, v in shown.items()]
        log.info(
            "%s: step %s of %s, %.3g steps/s, %s left%s",
            self.arm_name,
            f"{step:,}",
            f"{self.num_steps:,}",
            rate,
            _clock((self.num_steps - step) / max(rate, 1e-9)),
            "".join(f", {part}" for part in numbers),
        )


def _shown(metrics: dict[str, Any]) -> dict[str, float]:
    """Return what stands behind a bar or in a line: numbers, whole ones (dead latents) as such.

    >>> _shown({"v_num": "3", "fvu": 0.25, "dead": 1.0})
    {'fvu': 0.25, 'dead': 1}
    """
    numbers = {name: float(v) for name, v in metrics.items() if name != "v_num"}
    return {name: int(v) if v.is_integer() else v for name, v in numbers.items()}


def _clock(seconds: float) -> str:
    """Return a time as it is read.

    >>> _clock(59.6), _clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
