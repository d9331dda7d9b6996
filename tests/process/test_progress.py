"""What the bar shows."""

import types
from typing import Any

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn

from ssae.process import progress
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


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with caplog.at_level("INFO"), progress.progress_bar("reading", 4) as bar:
        [task] = bar.tasks
        for number in range(1, 5):
            bar.update(task.id, completed=number, rate=f"{number} documents")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "reading: 25 %, 1 documents"
    assert len(said) == 4
    caplog.clear()
    monkeypatch.setattr(progress, "LINE_SECONDS", 60.0)
    with caplog.at_level("INFO"), progress.progress_bar("reading", 4) as bar:
        bar.update(bar.tasks[0].id, completed=1, rate="")
    assert not caplog.records
