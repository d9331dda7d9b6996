"""What the bar shows."""

import types
from typing import Any

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn

from ssae.process.progress import PERCENTAGE, progress_bar, token_rate


@pytest.mark.parametrize(
    ("done", "shown"), [(PERCENTAGE, " 25%"), (MofNCompleteColumn(), " 50/200")]
)
def test_a_bar_says_what_is_done_how_far_and_how_fast(done, shown):
    bar = progress_bar("evaluating on {a} split", 200, done)
    [task] = bar.tasks
    bar.update(task.id, completed=50, rate="7 tokens/s")
    console = Console(width=120)
    with console.capture() as text:
        console.print(bar)
    words = text.get()
    assert words.startswith("evaluating on {a} split ")
    assert f"{shown} 7 tokens/s" in words


def test_the_rate_is_that_of_the_time_since_the_start():
    task: Any = types.SimpleNamespace(elapsed=2.0)
    assert token_rate(task, 3000) == "3,000 tokens, 1,500 tokens/s"
    assert token_rate(task, 3000, " x 4 SAEs") == "3,000 tokens x 4 SAEs, 1,500 tokens/s"
    task.elapsed = None  # not started
    assert token_rate(task, 0) == "0 tokens, 0 tokens/s"
