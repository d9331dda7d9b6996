"""`make stress`: real processes, killed at random, and files with flipped bytes."""

from collections import defaultdict

import pytest

FIGURES = {
    "kills": "processes killed with SIGKILL, all continued to the same bytes",
    "torn": "of these, while a checkpoint or shard was being written",
    "steps_lost": "training steps lost by a kill, at most (a checkpoint every 50)",
    "bytes_compared": "bytes of results and logs compared with those of uninterrupted runs",
    "flips": "bytes flipped, one at a time, in shards, manifests, checkpoints and their like",
    "detected": "of these, reported with the name of the file",
    "harmless": "of these, read as the same values",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Minutes long: only on request, `-m stress`."""
    if "stress" not in config.option.markexpr:
        chosen = [item for item in items if not item.get_closest_marker("stress")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of all tests together."""
    found: dict[str, list[int]] = defaultdict(list)
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            found[name].append(value)
    if found:
        terminalreporter.section("figures")
    for name, text in FIGURES.items():
        if name in found:
            value = max(found[name]) if name == "steps_lost" else sum(found[name])
            terminalreporter.write_line(f"{value:>12,}  {text}")
