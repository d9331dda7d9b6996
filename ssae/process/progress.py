"""The bar that is shown while something takes long; that of training is Lightning's."""

import logging
import time
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

PERCENTAGE = "{task.percentage:>3.0f}%"
LINE_SECONDS = 60.0
"""Between lines, where a bar cannot move: in a log."""


class _Bar(Progress):
    """A bar on a terminal, a line a minute elsewhere."""

    _said = time.monotonic()

    def start(self) -> None:
        self._said = time.monotonic()
        super().start()

    def update(self, task_id: TaskID, *args: Any, **kwargs: Any) -> None:
        super().update(task_id, *args, **kwargs)
        if self.console.is_terminal or time.monotonic() - self._said < LINE_SECONDS:
            return
        self._said = time.monotonic()
        [task] = self.tasks
        log.info("%s: %.0f %%, %s", task.description, task.percentage, task.fields["rate"])


def progress_bar(what: str, total: float, done: str | ProgressColumn = PERCENTAGE) -> Progress:
    """Return a bar of one task, `[task] = bar.tasks`, to be entered.

    Args:
        what: is done, such as "harvesting".
        total: at which `completed` of the task is all of it.
        done: the column that says how far it is.

    Returns:
        The bar; `bar.update(task.id, completed=..., rate=...)` moves it, and shows the text `rate`.
    """
    columns = TextColumn("{task.description}"), BarColumn(), done
    bar = _Bar(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    bar.add_task(what, total=total, rate="")
    return bar


def token_rate(task: Task, num_tokens: int, each: str = "") -> str:
    """Return "1,234 tokens, 567 tokens/s".

    Args:
        task: whose time is counted, since its bar was made.
        num_tokens: that are done.
        each: what was done with each of them, behind the first "tokens".
    """
    rate = num_tokens / max(task.elapsed or 0, 1e-3)
    return f"{num_tokens:,} tokens{each}, {rate:,.0f} tokens/s"
