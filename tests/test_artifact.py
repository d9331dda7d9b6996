import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ssae.artifact import Artifact, build, content_hash, describe, file_sha256

REPOSITORY = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Part:
    value: float
    num_workers: int = dataclasses.field(default=1, metadata={"content": False})


def some_function(x: int, y: int) -> int:
    return x + y


def make(folder: Path) -> dict:
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "data.txt").write_text("content")
    return {"count": 7}


def test_a_description_names_classes_functions_and_artifacts(tmp_path: Path):
    described = describe(
        {
            "part": Part(0.5),
            "f": functools.partial(some_function, y=2),
            "a": Artifact(tmp_path / "h", "v"),
            "list": (1, None, True, "x"),
        }
    )
    assert described["part"] == {"_target_": f"{Part.__module__}.Part", "value": 0.5}
    assert described["f"] == {"_target_": f"{__name__}.some_function", "y": 2}
    assert described["a"] == "h"
    assert described["list"] == [1, None, True, "x"]


@pytest.mark.parametrize("thing", [object(), {1, 2}, functools.partial(some_function, 1)])
def test_what_cannot_be_described_is_refused(thing: object):
    with pytest.raises(ValueError, match="cannot describe"):
        describe(thing)


def test_the_hash_covers_what_decides_the_content_and_nothing_else():
    assert content_hash(Part(1.0, num_workers=1)) == content_hash(Part(1.0, num_workers=8))
    assert content_hash(Part(1.0)) != content_hash(Part(2.0))
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(None) == "74234e98afe7498f"  # sha256 of "null": the same on every machine


def test_a_finished_artifact_is_complete_and_reused(tmp_path: Path):
    artifact = build(tmp_path, "verb", {"x": 1}, make)
    again = build(tmp_path, "verb", {"x": 1}, lambda _: pytest.fail("built twice"))
    assert again.path == artifact.path == tmp_path / "verb" / content_hash({"x": 1})
    assert artifact.manifest["count"] == 7
    entry = artifact.manifest["files"]["sub/data.txt"]
    assert entry == {"size": 7, "sha256": file_sha256(artifact.path / "sub/data.txt")}
    assert (artifact.path / "config.yaml").read_text() == "x: 1\n"
    assert (artifact.path / "DONE").exists()
    assert artifact.corrupt_files() == []


def test_other_inputs_are_another_artifact(tmp_path: Path):
    assert (
        build(tmp_path, "verb", {"x": 1}, make).path != build(tmp_path, "verb", {"x": 2}, make).path
    )


def failing(folder: Path) -> dict:
    (folder / "half.txt").write_text("half")
    raise RuntimeError("stopped")


@pytest.mark.parametrize("resumable", [False, True])
def test_an_exception_leaves_nothing_that_is_trusted(tmp_path: Path, resumable: bool):
    with pytest.raises(RuntimeError, match="stopped"):
        build(tmp_path, "verb", {}, failing)
    found = []

    def second(folder: Path) -> dict:
        found.extend(path.name for path in folder.iterdir())
        return make(folder)

    artifact = build(tmp_path, "verb", {}, second, resumable=resumable)
    assert found == (["half.txt"] if resumable else [])
    assert ("half.txt" in artifact.manifest["files"]) is resumable
    assert not artifact.path.with_suffix(".partial").exists()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from ssae.artifact import build

    def make(folder):
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    build(Path(sys.argv[1]), "verb", {}, make)
"""


def test_a_killed_process_blocks_nobody_and_is_rebuilt(tmp_path: Path):
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    partial = list((tmp_path / "verb").glob("*.partial"))
    assert [path.name for path in partial[0].iterdir()] == ["half.txt"]
    assert list(build(tmp_path, "verb", {}, make).manifest["files"]) == [
        "config.yaml",
        "sub/data.txt",
    ]


@pytest.mark.parametrize("damage", ["truncated", "lost", "unmarked"])
def test_a_damaged_artifact_is_refused_with_the_remedy(tmp_path: Path, damage: str):
    path = build(tmp_path, "verb", {}, make).path
    if damage == "truncated":
        (path / "sub/data.txt").write_text("cont")
    else:
        (path / ("sub/data.txt" if damage == "lost" else "DONE")).unlink()
    with pytest.raises(ValueError, match=rf"damaged \(.*rm -r {path}"):
        build(tmp_path, "verb", {}, make)


def test_changed_bytes_of_the_same_size_are_found_on_request(tmp_path: Path):
    artifact = build(tmp_path, "verb", {}, make)
    (artifact.path / "sub/data.txt").write_text("CONTENT")
    assert artifact.corrupt_files() == ["sub/data.txt"]


def counted(folder: Path, log: str) -> dict:
    with open(log, "a") as file:
        file.write("built\n")
    return make(folder)


def build_in_worker(root: str) -> str:
    log = f"{root}/log"
    return str(build(Path(root), "verb", {}, functools.partial(counted, log=log)).path)


def test_processes_that_need_the_same_artifact_build_it_once(tmp_path: Path):
    context = multiprocessing.get_context("fork")  # the workers must see this module
    with ProcessPoolExecutor(4, mp_context=context) as workers:
        paths = set(workers.map(build_in_worker, [str(tmp_path)] * 8))
    assert len(paths) == 1
    assert (tmp_path / "log").read_text() == "built\n"
    assert json.loads((Path(paths.pop()) / "manifest.json").read_text())["count"] == 7


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}'])
def test_a_damaged_manifest_is_refused_with_the_remedy(tmp_path: Path, content: str):
    artifact = build(tmp_path, "verb", {"a": 1}, lambda folder: {})
    (artifact.path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="manifest.json.*rm -r"):
        build(tmp_path, "verb", {"a": 1}, lambda folder: {})


def test_a_small_file_with_a_flipped_byte_is_not_reused(tmp_path: Path):
    def make(folder: Path) -> dict:
        (folder / "data.txt").write_text("abc")
        return {}

    artifact = build(tmp_path, "verb", {"a": 1}, make)
    (artifact.path / "data.txt").write_text("abd")
    with pytest.raises(ValueError, match="data.txt.*rm -r"):
        build(tmp_path, "verb", {"a": 1}, make)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="set artifacts="):
        build(tmp_path / "file", "verb", {"a": 1}, lambda folder: {})
