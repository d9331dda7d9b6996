"""From text to a trained TopK SAE, side by side with the peers that are installed.

    python -m ssae.bench e2e
    python -m ssae.bench e2e --rounds 1 --only ssae sae.d_sae=2048 generalist.num_tokens=100_000

Overrides are those of `ssae train`; all contenders read the same rows of tokens through the same
language model at the same hookpoint, and train as many tokens at equal width, k and batch on the
CPU. The clock starts when tokens and model are in memory and stops when the SAE is trained (ours:
when the artifact is sealed). Contenders take turns, each run in a process of its own; the table
shows medians. Peers run as their users run them; SSAE_ALLOCATOR=lent gives them what
ssae/process/allocator.py does, too. Peers come with: pip install -e ".[peers]"
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssae.bench.contenders import ARM, CONTENDERS, compose, study_for, tokens_of

OURS = "ssae"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("overrides", nargs="*", help="of the study, as in `ssae train`")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender")
    parser.add_argument("--only", help="contenders whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if arguments.rounds < 1:
        sys.exit(f"--rounds must be at least 1, got {arguments.rounds}")
    names = [name for name in CONTENDERS if (arguments.only or "") in name]
    if not names:
        sys.exit(f"--only {arguments.only} is in no name: {', '.join(CONTENDERS)}")
    with tempfile.TemporaryDirectory() as folder:
        num_tokens = compose(Path(folder), arguments.overrides).arms[ARM].num_tokens
        for name in names:
            rows = tokens_of(study_for(name, Path(folder), arguments.overrides))
            if rows.num_tokens < num_tokens:
                sys.exit(
                    f"the text has {rows.num_tokens:,} tokens, fewer than generalist.num_tokens "
                    f"({num_tokens:,}); give generalist.num_tokens={rows.num_tokens}"
                )
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for index in range(arguments.rounds):
            for name in list(seconds):
                taken = _seconds(name, folder, arguments.overrides)
                if taken is None:
                    del seconds[name]
                    continue
                seconds[name].append(taken)
                print(f"round {index + 1}: {name} {num_tokens / taken:,.0f} tokens/s", flush=True)  # noqa: T201
        found = _results(seconds, num_tokens)
        Console(width=None if sys.stdout.isatty() else 100).print(_table(found, num_tokens))
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _seconds(name: str, folder: str, overrides: list[str]) -> float | None:
    command = [sys.executable, "-m", "ssae.bench.contenders", name, folder, *overrides]
    environment = os.environ | {"WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    if not name.startswith(OURS) and "SSAE_ALLOCATOR" not in environment:
        environment["SSAE_ALLOCATOR"] = "system"
        environment.pop("THP_MEM_ALLOC_ENABLE", None)  # this process has it from tune_allocator
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"without {name}: {why}", file=sys.stderr)  # noqa: T201
        return None
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def _results(seconds: dict[str, list[float]], num_tokens: int) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "tokens": num_tokens,
            "seconds": statistics.median(taken),
            "tokens_per_second": num_tokens / statistics.median(taken),
            "runs": taken,
        }
        for name, taken in seconds.items()
        if taken
    ]


def _table(found: list[dict[str, Any]], num_tokens: int) -> Table:
    title = f"{num_tokens:,} tokens, from text to a trained SAE"
    drawn = Table(title=title, title_justify="left")
    rates = {row["name"]: row["tokens_per_second"] for row in found}
    for name in ("contender", "seconds", "range", "tokens/s", "ssae is faster by"):
        drawn.add_column(name, justify="left" if name == "contender" else "right")
    for row in found:
        faster = f"{rates[OURS] / row['tokens_per_second']:.1f}x" if OURS in rates else ""
        drawn.add_row(
            row["name"], f"{row['seconds']:.1f}", f"{min(row['runs']):.1f}-{max(row['runs']):.1f}",
            f"{row['tokens_per_second']:,.0f}", faster,
        )  # fmt: skip
    return drawn
