"""What harvesting costs beside the model, how long training waits for data, and memory.

    python -m ssae.bench data
    python -m ssae.bench data --rounds 1 generalist.num_tokens=100_000

harvest   tokens/s of the model's own forward up to the hookpoint, on all cores, and of `ssae
          harvest`: the same batches, in turns; the share says how much of the bare speed is there
          with statistics, checksums, files and sealing
loader    share of a training run (TopK, from shards) spent waiting for batches
memory    peak RSS of a process that reads every token once in shuffled batches, at N tokens of
          activations and at 10 N

Overrides are those of `ssae train`.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from rich.table import Table
from torch import nn

from ssae.activation.plan import plan_shards
from ssae.activation.rows import Rows, batches_of
from ssae.bench.contenders import ARM, compose, tokens_of
from ssae.harvest import harvest_for
from ssae.study import Study
from ssae.train import train

TEXT = ("generalist.num_tokens=1_000_000", "generalist.budget_tokens=1_000_000")
WAITING = "[_TrainingEpochLoop].train_dataloader_next"
TRAINING = "run_training_epoch"
MEMORY_TOKENS = 2**18
WRITE = "from ssae.bench.memory import write_shards; write_shards({folder!r}, {num_tokens})"
READ = "from ssae.bench.memory import read_shuffled; print(read_shuffled({folder!r}))"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("overrides", nargs="*", help="of the study, as in `ssae train`")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if arguments.rounds < 1:
        sys.exit(f"--rounds must be at least 1, got {arguments.rounds}")
    with tempfile.TemporaryDirectory() as folder:
        study = compose(Path(folder), [*TEXT, *arguments.overrides])
        rows = tokens_of(study)
        found = harvest_speed(study, rows, arguments.rounds)
        shares = [waiting_share(study) for _ in range(arguments.rounds)]
        found |= {"waiting_share": statistics.median(shares), "waiting_shares": shares}
        found |= memory(folder)
    Console(width=None if sys.stdout.isatty() else 100).print(_table(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def harvest_speed(study: Study, rows: Rows, rounds: int) -> dict[str, Any]:
    """Return tokens per second of the bare forward and of the harvest, and their ratio."""
    lm, hookpoint = study.language_model, study.language_model.resolve(study.hookpoint)
    batches = [
        row_ids
        for shard in plan_shards(rows, study.shard_tokens)
        for row_ids in batches_of(rows, shard.row_ids, study.harvest_batch_tokens)
    ]

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise StopIteration

    options = {"use_cache": False} if lm.is_causal else {}

    @torch.inference_mode()
    def bare() -> None:
        handle = lm.model.get_submodule(hookpoint).register_forward_hook(stop)
        for row_ids in batches:
            batch = rows.batch(row_ids)
            with contextlib.suppress(StopIteration):
                lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
        handle.remove()

    def harvested() -> None:
        shutil.rmtree(study.artifacts / "harvest", ignore_errors=True)
        harvest_for(study, ARM)

    seconds: dict[str, list[float]] = {"bare": [], "harvest": []}
    for index in range(-1, rounds):  # one to warm up
        for name, work in (("bare", bare), ("harvest", harvested)):
            start = time.perf_counter()
            work()
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    bare_s, harvest_s = (statistics.median(taken) for taken in seconds.values())
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "bare_tokens_per_second": rows.num_tokens / bare_s,
        "harvest_tokens_per_second": rows.num_tokens / harvest_s,
        "harvest_share_of_bare": statistics.median(ratios),
        "harvest_shares": ratios,
    }


def waiting_share(study: Study) -> float:
    """Return the share of a training run's time in which it waits for its next batch."""
    shutil.rmtree(study.artifacts / "train", ignore_errors=True)
    profiler = SimpleProfiler()
    options = study.trainer.keywords | {"profiler": profiler}
    trainer = functools.partial(study.trainer.func, **options)
    train(dataclasses.replace(study, trainer=trainer), ARM)
    recorded = profiler.recorded_durations
    return sum(recorded[WAITING]) / sum(recorded[TRAINING])


def memory(folder: str) -> dict[str, float]:
    """Return peak RSS in MB at MEMORY_TOKENS and ten times as many tokens."""
    found = {}
    for times in (1, 10):
        there = f"{folder}/memory_{times}x"
        for script in (WRITE, READ):  # each in a process of its own
            code = script.format(folder=there, num_tokens=times * MEMORY_TOKENS)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
        found[f"rss_mb_{times}x"] = float(done.stdout)
        shutil.rmtree(there)
    return found


def _table(found: dict[str, Any]) -> Table:
    drawn = Table("what", "value", title="data", title_justify="left")
    kept, waiting = found["harvest_shares"], found["waiting_shares"]
    for what, value in (
        ("bare forward", f"{found['bare_tokens_per_second']:,.0f} tokens/s"),
        ("ssae harvest", f"{found['harvest_tokens_per_second']:,.0f} tokens/s"),
        ("  of bare", f"{found['harvest_share_of_bare']:.3f} ({min(kept):.3f}-{max(kept):.3f})"),
        (
            "training waits for its batches",
            f"{found['waiting_share']:.1%} ({min(waiting):.1%}-{max(waiting):.1%})",
        ),
        (f"peak RSS reading {MEMORY_TOKENS:,} tokens", f"{found['rss_mb_1x']:,.0f} MB"),
        ("  ten times as many", f"{found['rss_mb_10x']:,.0f} MB"),
    ):
        drawn.add_row(what, value)
    return drawn
