"""Files for everyone whom the umask lets read, whatever the library that writes them says."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file."""
    save_file(dict(tensors), path)
    obey_umask(path)


def obey_umask(path: Path) -> None:
    """Give a file that was made private (mkstemp, safetensors) the mode of any other."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
