import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssae.artifact.tensors import write_tensors


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read(tmp_path: Path, mask: int, mode: int):
    path = tmp_path / "a.safetensors"
    before = os.umask(mask)
    try:
        write_tensors({"x": torch.arange(3)}, path)
    finally:
        assert os.umask(before) == mask
    assert path.stat().st_mode & 0o777 == mode
    assert load_file(path)["x"].tolist() == [0, 1, 2]
