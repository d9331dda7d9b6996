"""Peak memory: of a training step, and of reading activations."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssae.activation.datamodule import Shards, ShardSource
from ssae.activation.reader import Activations
from ssae.activation.shards import write_statistics
from ssae.activation.writer import ShardWriter
from ssae.artifact.store import Artifact, build

WIDTH, SHARD_TOKENS, WINDOW_TOKENS, BATCH = 192, 2**16, 2**17, 1024


def peak_memory(step: Callable[[Tensor], Any], x: Tensor) -> int:
    """Return the bytes of tensors at the peak of a step beyond parameters, gradients and optimiser.

    Args:
        step: not run before, so that its gradients and moments are seen to be allocated.
        x: (n, d_in) one batch.
    """
    if x.device.type == "cuda":
        step(x)
        torch.cuda.synchronize()
        between = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(x)
        return torch.cuda.max_memory_allocated() - between
    with torch.profiler.profile(profile_memory=True) as profile:
        step(x)
        step(x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    held, total = [], 0
    for _, change in changes:
        total += change
        held.append(total)
    return max(held) - held[-1]


def write_shards(folder: str, num_tokens: int) -> None:
    """Write random activations (num_tokens, WIDTH), a multiple of SHARD_TOKENS, as an artifact."""

    def make(partial: Path) -> dict[str, Any]:
        writer = ShardWriter(partial, "random", SHARD_TOKENS, WIDTH, torch.float32)
        sizes = [SHARD_TOKENS] * (num_tokens // SHARD_TOKENS)
        origins = torch.zeros(SHARD_TOKENS, 3, dtype=torch.int32)
        for number, size in enumerate(sizes):
            writer.start(number, number * size, size)
            writer.write(torch.randn(size, WIDTH), origins, slice(0, size))
            writer.finish()
        writer.wait()
        writer.close()
        return write_statistics(partial, sizes, torch.tensor([num_tokens]), torch.float32)

    build(Path(folder), "harvest", {}, make)


def read_shuffled(folder: str) -> float:
    """Read every token of `write_shards` once, in batches; return this process's peak RSS in MB."""
    [done] = Path(folder).glob("harvest/*/DONE")
    activations = Activations(Artifact(done.parent, "harvest"))
    settings = Shards(window_tokens=WINDOW_TOKENS, block_tokens=1024, read_ahead=False)
    source = ShardSource(activations, settings, batch_size=BATCH, seed=0)
    for step in range(len(activations) // BATCH):
        source.batch(step, 0, 1)
    # Not resource.getrusage: its peak is that of the process that started this one, if larger.
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(peak) / 1e3
