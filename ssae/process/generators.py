"""The global random number generators of a process: torch, CUDA, numpy, Python."""

import random
from typing import Any

import numpy as np
import torch


def states() -> dict[str, Any]:
    """Return the state of each, of types that torch reads back without unpickling."""
    state: Any = np.random.get_state(legacy=True)
    name, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore(states: dict[str, Any]) -> None:
    """Go on from what `states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
