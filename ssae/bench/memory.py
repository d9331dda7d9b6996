"""Peak memory of a training step."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
