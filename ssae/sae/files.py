"""Save and load SAEs: `sae.safetensors` (weights) beside `sae.json` (architecture, arguments).

    sae.json   {"format": 1, "architecture": "topk", "hyperparameters": {"d_in": 192, ...},
                "metadata": {"hookpoint": ..., "language_model": ..., ...}}

Nothing is ever unpickled, and weights are checked against what sae.json says before they are used.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ssae.sae.base import SparseAutoencoder
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE

ARCHITECTURES = {sae.architecture: sae for sae in (TopKSAE, ReLUSAE)}


def save(
    sae: SparseAutoencoder, path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `sae.safetensors` and `sae.json` into the directory `path`."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()
    }
    description = {
        "format": 1,
        "architecture": sae.architecture,
        "hyperparameters": sae.hyperparameters,
        "metadata": dict(metadata or {}),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    # Both are on disk before either takes its name: an interruption leaves the old SAE as it was.
    save_file(weights, folder / "sae.safetensors.tmp")
    (folder / "sae.json.tmp").write_text(text, encoding="utf-8")
    os.replace(folder / "sae.safetensors.tmp", folder / "sae.safetensors")
    os.replace(folder / "sae.json.tmp", folder / "sae.json")


def load(path: str | Path) -> SparseAutoencoder:
    """Return the SAE saved in the directory `path`, on the CPU, in eval mode.

    Raises:
        ValueError: a file is missing, damaged, or does not fit the other.
    """
    folder = Path(path)
    description = load_description(folder)
    architecture = description.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{folder / 'sae.json'} names architecture {architecture!r}; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    try:
        with torch.device("meta"):  # shapes only: no memory and no random numbers are used up
            sae = ARCHITECTURES[architecture](**description["hyperparameters"])
        weights = load_file(folder / "sae.safetensors")
    except (TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder / 'sae.json'} does not describe an SAE: {error}") from error
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / 'sae.safetensors'}: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        raise ValueError(
            f"{folder}: sae.json describes weights {expected}, sae.safetensors holds {found}"
        )
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder / 'sae.safetensors'}: {name} holds non-finite values")
    sae.to_empty(device="cpu").load_state_dict(weights)
    return sae.eval()


def load_description(folder: Path) -> dict[str, Any]:
    """Return the content of `sae.json`.

    Raises:
        ValueError: it is missing or not JSON.
    """
    try:
        description = json.loads((folder / "sae.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no sae.json; give the directory that `ssae train` or ssae.save wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {folder / 'sae.json'}: {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"{folder / 'sae.json'} must hold a JSON object")
    return description
