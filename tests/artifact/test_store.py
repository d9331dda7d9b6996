import ast
import collections
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lightning
import pytest
import yaml

from ssae.artifact.manifest import file_sha256
from ssae.artifact.store import (
    ARTIFACT_FORMAT,
    Artifact,
    build,
    content_hash,
    describe,
    locate,
)
from ssae.artifact.together import build_together

REPOSITORY = Path(__file__).parents[2]


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


def test_names_of_ssae_say_nothing_of_files_and_are_unique():
    """A class that moves leaves its artifacts valid; two of one name would share theirs."""
    assert describe(functools.partial(content_hash, y=2))["_target_"] == "ssae.content_hash"
    names = [
        node.name
        for path in (REPOSITORY / "ssae").rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    counts = collections.Counter(names)
    assert "Arm" in counts
    assert [name for name, count in counts.items() if count > 1] == []


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
    assert again.path == artifact.path
    assert artifact.manifest["count"] == 7
    entry = artifact.manifest["files"]["sub/data.txt"]
    assert entry == {"size": 7, "sha256": file_sha256(artifact.path / "sub/data.txt")}
    config = yaml.safe_load((artifact.path / "config.yaml").read_text())
    assert config == {"x": 1, "artifact_format": ARTIFACT_FORMAT}
    assert artifact.path == tmp_path / "verb" / content_hash(config)
    assert (artifact.path / "DONE").read_text() == file_sha256(artifact.path / "manifest.json")
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
    from ssae.artifact.store import build

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


def test_every_byte_of_every_small_file_is_guarded(tmp_path: Path):
    path = build(tmp_path, "verb", {"x": 1}, make).path
    flipped = 0
    for file in [path for path in path.rglob("*") if path.is_file()]:
        content = file.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"damaged \(.*; remove it and run again: rm -r"):
                build(tmp_path, "verb", {"x": 1}, make)
            flipped += 1
        file.write_bytes(content)
    assert flipped > 500
    build(tmp_path, "verb", {"x": 1}, lambda _: pytest.fail("was whole again"))


def test_files_that_were_hashed_while_written_are_not_read_again(tmp_path: Path):
    digest = hashlib.sha256(b"content").hexdigest()

    def make_hashed(folder: Path) -> dict:
        (folder / "data.txt").write_text("other")
        return {"digests": {"data.txt": {"sha256": digest}}}

    artifact = build(tmp_path, "verb", {}, make_hashed)
    assert artifact.manifest["files"]["data.txt"] == {"size": 5, "sha256": digest}
    assert "digests" not in artifact.manifest


def test_what_a_process_that_died_while_sealing_left_is_not_content(tmp_path: Path):
    partial = locate(tmp_path, "verb", {}).partial
    partial.mkdir(parents=True)
    for name in ("DONE", "manifest.json", "config.yaml"):
        (partial / name).write_text("torn")
    artifact = build(tmp_path, "verb", {}, make, resumable=True)
    assert sorted(artifact.manifest["files"]) == ["config.yaml", "sub/data.txt"]
    assert artifact.corrupt_files() == []


TWO = [("verb", {"x": 1}), ("verb", {"x": 2})]


@pytest.fixture
def trainer() -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def test_several_artifacts_are_built_in_one_call_and_only_those_that_are_missing(
    tmp_path: Path, trainer: lightning.Trainer
):
    all_inputs = [{"x": 1}, {"x": 2}, {"x": 3}]
    there = build(tmp_path, "verb", all_inputs[1], make)
    wanted = [("verb", inputs) for inputs in all_inputs]
    asked = []

    def make_all(folders: list[Path]) -> list[dict]:
        asked.extend(folder.name for folder in folders)
        for folder in folders:
            (folder / "name.txt").write_text(folder.name)
        return [{"number": number} for number, _ in enumerate(folders)]

    artifacts = build_together(tmp_path, wanted, make_all, trainer)
    assert artifacts == [locate(tmp_path, "verb", inputs) for inputs in all_inputs]
    assert artifacts[1] == there
    assert asked == [artifacts[0].partial.name, artifacts[2].partial.name]
    assert [artifacts[i].manifest["number"] for i in (0, 2)] == [0, 1]
    assert (artifacts[2].path / "name.txt").read_text() == asked[1]
    assert all(artifact.corrupt_files() == [] for artifact in artifacts)
    again = build_together(tmp_path, wanted, lambda _: pytest.fail("built twice"), trainer)
    assert again == artifacts


def test_what_is_built_together_is_continued_after_an_error_and_its_locks_are_free(
    tmp_path: Path, trainer: lightning.Trainer
):
    def fail(folders: list[Path]) -> list[dict]:
        (folders[0] / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_together(tmp_path, TWO, fail, trainer)
    partials = [path.name for path in (tmp_path / "verb").glob("*.partial")]
    assert partials == [locate(tmp_path, "verb", {"x": 1}).partial.name]

    def finish(folders: list[Path]) -> list[dict]:
        assert (folders[0] / "half.txt").exists()
        return [{} for _ in folders]

    first, second = build_together(tmp_path, TWO, finish, trainer)
    assert "half.txt" in first.manifest["files"]
    assert "half.txt" not in second.manifest["files"]


def test_a_damaged_artifact_is_refused_by_those_who_build_together(
    tmp_path: Path, trainer: lightning.Trainer
):
    path = build(tmp_path, "verb", {"x": 1}, make).path
    (path / "sub/data.txt").write_text("CONTENT")
    with pytest.raises(ValueError, match="sub/data.txt.*rm -r"):
        build_together(tmp_path, TWO[:1], lambda _: pytest.fail("built"), trainer)


def test_ranks_that_nobody_has_started_are_refused(tmp_path: Path):
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, logger=False, enable_checkpointing=False
    )
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m ssae <verb>"):
        build_together(tmp_path, [("verb", {})], lambda _: pytest.fail("built"), trainer)


RANK = """
import json, os, sys, time
from pathlib import Path
import lightning
from ssae.artifact.store import locate
from ssae.artifact.together import build_together, from_rank_zero

root, scenario = Path(sys.argv[1]), sys.argv[2]
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
trainer = lightning.Trainer(
    accelerator="cpu", devices=size, logger=False, enable_checkpointing=False
)

def make(folders):
    assert len(folders) == 2
    time.sleep(0.3 * rank)
    for folder in folders:
        (folder / f"rank{rank}.txt").write_text(str(rank))
    if scenario == "fails" and rank == size - 1:
        raise ValueError("the last rank fails")
    return [{"by": rank}, {"by": rank}]

if scenario == "fails_at_once" and rank == 0:
    root.joinpath("verb").write_text("a file")
for _ in range(2):
    artifacts = build_together(root, [("verb", {"x": 1}), ("verb", {"x": 2})], make, trainer)
    for artifact in artifacts:
        for other in range(size):
            assert (artifact.path / f"rank{other}.txt").read_text() == str(other)
assert from_rank_zero(lambda: rank + 7) == 7
"""


@pytest.fixture
def on_ranks(torchrun, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that plays a scenario of RANK on so many ranks."""
    (tmp_path / "rank.py").write_text(RANK)
    return lambda num_ranks, scenario: torchrun(
        num_ranks, tmp_path / "rank.py", str(tmp_path / "root"), scenario
    )


@pytest.mark.slow
def test_ranks_build_together_and_rank_zero_seals_when_all_are_done(tmp_path: Path, on_ranks):
    done = on_ranks(3, "works")
    assert done.returncode == 0, done.stderr[-3000:]
    for x in (1, 2):
        artifact = locate(tmp_path / "root", "verb", {"x": x})
        assert artifact.corrupt_files() == []
        assert artifact.manifest["by"] == 0
        names = ["config.yaml", "rank0.txt", "rank1.txt", "rank2.txt"]
        assert sorted(artifact.manifest["files"]) == names


@pytest.mark.slow
def test_nothing_is_sealed_when_a_rank_fails_and_the_others_end_too(tmp_path: Path, on_ranks):
    done = on_ranks(2, "fails")
    assert done.returncode != 0
    assert "ValueError: the last rank fails" in done.stderr
    assert not list((tmp_path / "root" / "verb").glob("*/DONE"))
    assert (locate(tmp_path / "root", "verb", {"x": 1}).partial / "rank0.txt").exists()


@pytest.mark.slow
def test_every_rank_is_told_what_rank_zero_could_not_do(tmp_path: Path, on_ranks):
    (tmp_path / "root").mkdir()
    done = on_ranks(2, "fails_at_once")
    assert done.returncode != 0
    assert "ValueError: rank 0 failed: " in done.stderr
    assert "set artifacts=<a folder you can write to>" in done.stderr
