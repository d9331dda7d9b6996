"""A full disk is said in one line, with the artifact that was being made, whoever was writing."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from ssae.artifact.full_disk import full_disk_explained, is_full_disk
from ssae.artifact.store import build

RULE = r"disk became full while making .*\.partial.*set artifacts=<.*>; what is finished stays"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("resumable", [True, False])
def test_a_full_disk_names_the_artifact_and_keeps_what_is_there(tmp_path: Path, resumable: bool):
    def make(folder: Path) -> dict[str, int]:
        (folder / "kept.txt").write_text("kept")
        (folder / "array.npy").symlink_to("/dev/full")
        np.save(folder / "array.npy", np.zeros(10_000))
        return {}

    with pytest.raises(ValueError, match=RULE) as error:
        build(tmp_path, "verb", {"number": 1}, make, resumable=resumable)
    [partial] = (tmp_path / "verb").glob("*.partial")
    assert str(partial) in str(error.value)
    assert (partial / "kept.txt").read_text() == "kept"

    def go_on(folder: Path) -> dict[str, int]:
        (folder / "array.npy").unlink(missing_ok=True)
        return {"kept": len(list(folder.iterdir()))}

    made = build(tmp_path, "verb", {"number": 1}, go_on, resumable=resumable)
    assert made.manifest["kept"] == resumable


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "DONE"])
def test_a_disk_that_fills_up_while_sealing_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    write_text = Path.write_text

    def full(path: Path, *args: str, **options: str) -> int:
        if path.name == name:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write_text(path, *args, **options)

    def make(folder: Path) -> dict[str, int]:
        (folder / "data.txt").touch()
        return {"count": 1}

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ValueError, match=RULE):
            build(tmp_path, "verb", {}, make)
    artifact = build(tmp_path, "verb", {}, make)
    assert json.loads((artifact.path / "manifest.json").read_text())["count"] == 1


def test_other_errors_stay_what_they_are(tmp_path: Path):
    for error in (
        OSError(errno.EACCES, "denied"),
        ValueError("No space left on device"),
        KeyError(),
    ):
        with pytest.raises(type(error)) as raised, full_disk_explained(tmp_path):
            raise error
        assert raised.value is error
    assert is_full_disk(SafetensorError("I/O error: No space left on device (os error 28)"))


def test_a_file_elsewhere_is_named(tmp_path: Path):
    def fill(name: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))

    rule = r"making .*/here at .*/there/metrics\.csv: make room"
    with pytest.raises(ValueError, match=rule), full_disk_explained(tmp_path / "here"):
        fill(tmp_path / "there" / "metrics.csv")
