"""Tensors for everyone whom the umask lets read, which safetensors does not."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ssae.artifact.replace import obey_umask


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    save_file(dict(tensors), path)
    obey_umask(path)
