"""Several processes, started as torchrun starts them, against one."""

import dataclasses
import functools
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest

from ssae.artifact.store import Artifact
from ssae.harvest import check_model, harvest_all
from ssae.read_pool import read_corpus
from ssae.study import Study

RANK = """
import os, pickle, signal, sys
from pathlib import Path
import torch
from ssae.activation.writer import ShardWriter
from ssae.harvest import check_model, harvest_all
from ssae.read_pool import read_corpus

torch.set_num_threads(1)
study, die_after = pickle.loads(Path(sys.argv[1]).read_bytes())
finish, made = ShardWriter.finish, []

def dying(writer):
    if os.environ["RANK"] == "1" and len(made) == die_after:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(writer.number)
    finish(writer)

ShardWriter.finish = dying
for _ in range(2):
    harvest_all(study, read_corpus(study), check_model(study), "general_test")
Path(sys.argv[1]).with_name(f"made_by_{os.environ['RANK']}").write_text(str(made))
"""


@pytest.fixture
def on_ranks(torchrun, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that harvests under torchrun; rank 1 kills itself after so many shards."""

    def run(
        study: Study, num_ranks: int, die_after: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        trainer = functools.partial(
            lightning.Trainer, accelerator="cpu", devices=num_ranks, precision="32-true"
        )
        study = dataclasses.replace(study, trainer=trainer)
        (tmp_path / "study.pickle").write_bytes(pickle.dumps((study, die_after)))
        (tmp_path / "rank.py").write_text(RANK)
        return torchrun(num_ranks, tmp_path / "rank.py", str(tmp_path / "study.pickle"))

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_there(study: Study) -> dict[str, Artifact]:
    """The artifacts, which this process need not make: it could not start two ranks."""
    documents = read_corpus(study)
    found = harvest_all(study, documents, check_model(study), "general_test")
    assert not list((study.artifacts / "harvest").glob("*.partial"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["packed", "documents"])
def test_two_ranks_write_the_bytes_that_one_rank_writes(make_study, on_ranks, tmp_path, packing):
    changes = {
        "shard_tokens": 100, "packing": packing, "hookpoints": ["gpt_neox.layers.2.mlp"],
        "harvest_batch_tokens": 100,
    }  # fmt: skip
    one, two = (make_study(tmp_path / name, **changes) for name in ("one", "two"))
    done = on_ranks(two, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "made_by_0").read_text() == "[0, 0, 2, 2, 4, 4]"  # two hookpoints
    assert (tmp_path / "made_by_1").read_text() == "[1, 1, 3, 3, 5, 5]"
    expected = all_there(one)
    for hookpoint, artifact in all_there(two).items():
        assert artifact.hash == expected[hookpoint].hash
        assert contents(artifact.path) == contents(expected[hookpoint].path)


@pytest.mark.slow
def test_a_harvest_may_be_continued_by_another_number_of_ranks(make_study, on_ranks, tmp_path):
    one, more = (make_study(tmp_path / name, shard_tokens=50) for name in ("one", "more"))
    died = on_ranks(more, 2, die_after=2)
    assert died.returncode != 0
    [partial] = (more.artifacts / "harvest").glob("*.partial")
    there = {int(path.stem[-5:]) for path in partial.glob("shard_*.json")}
    assert 1 in there
    done = on_ranks(more, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    [expected] = all_there(one).values()
    num_shards = len(expected.manifest["shard_sizes"])
    for rank in range(3):
        made = [number for number in range(rank, num_shards, 3) if number not in there]
        assert (tmp_path / f"made_by_{rank}").read_text() == str(made)
    [found] = all_there(more).values()
    assert contents(found.path) == contents(expected.path)


@pytest.mark.slow
def test_ranks_without_a_shard_wait_for_the_others(make_study, on_ranks, tmp_path):
    study = make_study(tmp_path / "three", shard_tokens=300)
    done = on_ranks(study, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "made_by_2").read_text() == "[]"
    [found] = all_there(study).values()
    assert len(found.manifest["shard_sizes"]) == 2
    assert found.corrupt_files() == []
