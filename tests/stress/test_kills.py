"""SIGKILL at random moments: what is continued ends as what was never interrupted, to the bit."""

import csv
import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssae.training.checkpoints import newest

pytestmark = pytest.mark.stress

EVERY, STEPS = 50, 1000
COMMON = {
    "generalist.num_tokens": str(64 * STEPS), "training.checkpoint_every_steps": str(EVERY),
    "sae.d_sae": "4096", "training.dead_after_tokens": "5000", "trainer.log_every_n_steps": "1",
}  # fmt: skip


@dataclasses.dataclass
class Case:
    """Overrides, and the kills: anywhere, or while a checkpoint is being written."""

    overrides: dict[str, str]
    anywhere: int
    writing: int
    num_ranks: int = 1


CASES = {
    "topk and TERM": Case(
        {"arms.generalist.objective._target_": "ssae.objective.term.TERM",
         "+arms.generalist.objective.tilt": "2"}, 3, 3,
    ),
    "batchtopk": Case({"sae": "batchtopk", "training.resample_every_steps": "70"}, 2, 2),
    "jumprelu": Case({"sae": "jumprelu"}, 2, 2),
    "stream": Case(
        {"activation": "stream", "activation.window_tokens": "1000", "activation.lanes": "2",
         "activation.calibration_tokens": "500"}, 2, 2,
    ),
    "two ranks": Case({"sae": "batchtopk", "trainer.devices": "2"}, 2, 2, num_ranks=2),
}  # fmt: skip


class Attempts:
    """The same command again and again in one folder, each with logs of its own."""

    def __init__(self, folder: Path, start: Callable, words: Callable[[int], list[str]]) -> None:
        self.folder, self._start, self._words = folder, start, words
        self.number = -1
        folder.mkdir()

    def start(self) -> None:
        self.number += 1
        self.process = self._start(self.folder, *self._words(self.number))

    def end(self) -> None:
        assert self.process.end() == 0, self.process.err.read_text()[-3000:]

    def kill(self) -> None:
        """End every process of the attempt at once, with no time for anything."""
        pids = [self.process.popen.pid, *self.process.children()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.popen.wait()
        while any(is_running(pid) for pid in pids):
            time.sleep(0.01)

    def rows(self, number: int) -> dict[int, dict[str, str]]:
        """Return {step: logged values} of an attempt."""
        found = {}
        for path in self.folder.glob(f"runs/{number}/logs/generalist/version_0/metrics.csv"):
            with path.open() as file:
                for row in csv.DictReader(file):
                    if None in row.values() or not row["step"]:
                        continue  # the line that the kill cut off
                    row.pop("train/tokens_per_second")
                    found[int(row["step"])] = {k: v for k, v in row.items() if v}
        return found

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 200
        while max(self.rows(self.number), default=-1) < step:
            assert self.process.popen.poll() is None, self.process.err.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for_writing(self) -> None:
        [folder] = self.folder.glob("artifacts/train/*.checkpoints")
        while not any(name.endswith(".partial") for name in os.listdir(folder)):
            assert self.process.popen.poll() is None


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", CASES)
def test_training_killed_again_and_again_ends_as_if_it_had_not_been(
    start, train_command, tmp_path, record_property, name
):
    case, dice = CASES[name], random.Random(name)

    def words(number: int) -> list[str]:
        command = train_command(**COMMON, **case.overrides, **{"hydra.run.dir": f"runs/{number}"})
        if name == "jumprelu":
            command = [word for word in command if not word.startswith("sae.k=")]
        if case.num_ranks > 1:
            ranks = ["--standalone", "--nproc-per-node", str(case.num_ranks)]
            command = ["-m", "torch.distributed.run", *ranks, *command]
        return command

    whole = Attempts(tmp_path / "whole", start, words)
    whole.start()
    killed = Attempts(tmp_path / "killed", start, words)
    num_kills = case.anywhere + case.writing
    moments = ["anywhere"] * case.anywhere + ["writing"] * case.writing
    dice.shuffle(moments)
    # Some come before the first checkpoint, some after the same one.
    steps = sorted(dice.randrange(STEPS * 9 // 10) for _ in range(num_kills))
    begin, torn, most_lost = 0, 0, 0
    for step, moment in zip(steps, moments, strict=True):
        killed.start()
        killed.wait_for_step(max(step, begin))
        if moment == "writing":
            if begin == 0:
                killed.process.wait_for("artifacts/train/*.checkpoints")
            killed.wait_for_writing()
        time.sleep(dice.uniform(0, 0.003))
        killed.kill()
        torn += bool(list(killed.folder.glob("artifacts/train/*.checkpoints/*.partial")))
        rows = killed.rows(killed.number)
        assert min(rows) == begin  # it did continue from there
        last = [newest(path) for path in killed.folder.glob("artifacts/train/*.checkpoints")]
        begin = int(last[0].stem[5:]) if last and last[0] else 0
        lost = max(rows) + 1 - begin
        assert 0 <= lost <= EVERY
        most_lost = max(most_lost, lost)
    killed.start()
    killed.end()
    whole.end()
    assert min(killed.rows(killed.number)) == begin

    num_bytes = 0
    [expected] = (path.parent for path in whole.folder.glob("artifacts/train/*/DONE"))
    found = killed.folder / expected.relative_to(whole.folder)
    for file in ("sae.safetensors", "latents.safetensors", "sae.json", "config.yaml"):
        content = (expected / file).read_bytes()
        assert content == (found / file).read_bytes(), file
        num_bytes += len(content)
    logged = whole.rows(0)
    assert list(logged) == list(range(STEPS))
    seen = set()
    for number in range(killed.number + 1):
        for step, row in killed.rows(number).items():
            assert row == logged[step], (number, step)
            seen.add(step)
            num_bytes += len(json.dumps(row))
    assert seen == set(range(STEPS))
    record_property("kills", num_kills)
    record_property("torn", torn)
    record_property("steps_lost", most_lost)
    record_property("bytes_compared", num_bytes)


def test_harvesting_killed_again_and_again_ends_as_if_it_had_not_been(
    start, train_command, tmp_path, record_property, corpus_files
):
    dice = random.Random("harvest")
    texts = Path(corpus_files["pool"]).read_text(encoding="utf-8").splitlines()
    pool = tmp_path / "pool.jsonl"
    documents = [json.loads(text) for text in texts]
    with pool.open("w", encoding="utf-8") as file:
        for number in range(40_000):
            first, second = (dice.choice(documents)["text"] for _ in range(2))
            text = f"{number} {first} {second}"
            file.write(json.dumps({"text": text, "source": f"pool.{number}"}) + "\n")
    command = train_command(
        **{
            "corpus.pool": str(pool),
            "generalist.budget_tokens": "2_000_000",
            "shard_tokens": "9000",
            "selection.near_duplicates": "null",
        }
    )
    command[2] = "harvest"
    whole = Attempts(tmp_path / "whole", start, lambda number: command)
    whole.start()
    whole.end()
    [expected] = (path.parent for path in whole.folder.glob("artifacts/harvest/*/DONE"))
    num_shards = len(list(expected.glob("shard_*.safetensors")))
    killed = Attempts(tmp_path / "killed", start, lambda number: command)
    num_kills = torn = 0
    for share in sorted(dice.uniform(0, 0.9) for _ in range(6)):
        killed.start()
        killed.process.wait_for(
            "artifacts/harvest/*.partial/shard_*.safetensors", int(share * num_shards) + 1
        )
        time.sleep(dice.uniform(0, 0.003))
        killed.kill()
        [partial] = killed.folder.glob("artifacts/harvest/*.partial")
        whole_files = {f"shard_{i:05d}" for i in range(num_shards)}
        torn += any(path.name.partition(".")[0] not in whole_files or path.suffix
                    not in (".safetensors", ".json") for path in partial.iterdir())  # fmt: skip
        num_kills += 1
    killed.start()
    killed.end()
    found = killed.folder / expected.relative_to(whole.folder)
    num_bytes = 0
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        content = path.read_bytes()
        assert content == (found / path.name).read_bytes(), path.name
        num_bytes += len(content)
    record_property("kills", num_kills)
    record_property("torn", torn)
    record_property("bytes_compared", num_bytes)
