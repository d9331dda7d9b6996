"""Our own format: `sae.safetensors` (weights) beside `sae.json` (architecture, arguments).

    sae.json   {"format": 1, "architecture": "topk", "hyperparameters": {"d_in": 192, ...},
                "metadata": {"hookpoint": ..., "language_model": ..., ...}}

The only format that keeps every architecture, training hyperparameters and metadata.
"""

import json
from pathlib import Path

from ssae.artifact.tensors import write_tensors
from ssae.sae.formats.content import ARCHITECTURES, Content, shapes_of, skeleton
from ssae.sae.formats.untrusted import open_safetensors, read_json

DESCRIPTION, WEIGHTS = "sae.json", "sae.safetensors"
FILES = (WEIGHTS, DESCRIPTION)
NEEDS = f"{DESCRIPTION} and {WEIGHTS}"
HOLDS = tuple(ARCHITECTURES)


def holds(folder: Path) -> bool:
    """Whether the folder has a `sae.json`."""
    return (folder / DESCRIPTION).is_file()


def read(folder: Path) -> Content:
    """Return the SAE in `folder`."""
    path = folder / DESCRIPTION
    said = read_json(path)
    for key in ("architecture", "hyperparameters"):
        if key not in said:
            raise ValueError(f"{path} does not describe an SAE: it has no {key!r}")
    sae = skeleton(said["architecture"], said["hyperparameters"], where=path)
    weights = open_safetensors(folder / WEIGHTS).take(shapes_of(sae), DESCRIPTION)
    metadata = said.get("metadata")
    # The arguments as the class has them now: older files may lack newer ones.
    return Content(
        sae.architecture,
        sae.hyperparameters,
        weights,
        metadata if isinstance(metadata, dict) else {},
    )


def write(content: Content, folder: Path) -> None:
    """Write the two files into `folder`."""
    description = {
        "format": 1,
        "architecture": content.architecture,
        "hyperparameters": content.hyperparameters,
        "metadata": content.metadata,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    write_tensors(content.weights, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
