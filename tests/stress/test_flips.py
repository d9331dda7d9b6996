"""One byte flipped at a random place: reported with the file's name, or of no consequence."""

import dataclasses
import functools
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact, check
from ssae.harvest import harvest_for
from ssae.train import train
from ssae.training.checkpoints import newest

pytestmark = pytest.mark.stress


class Lose(lightning.Callback):
    """Leaves checkpoints behind."""

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == 15:
            raise RuntimeError("the process is gone")


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def read_harvest(artifact: Artifact) -> list[torch.Tensor]:
    """Everything training reads of a harvest, past the check that reuse makes."""
    fresh = Artifact(artifact.path, artifact.verb)  # its manifest is read again
    activations = Activations(fresh)
    numbers = [activations.variance, activations.mean_norm, float(activations.num_tokens)]
    statistics = [activations.mean, activations.token_counts, torch.tensor(numbers)]
    return [*activations.rows(torch.arange(len(activations))), *statistics]


def read_checked(artifact: Artifact) -> list[torch.Tensor]:
    return read_harvest(check(Artifact(artifact.path, artifact.verb)))


def read_checkpoint(folder: Path, expected: dict[str, Any], caplog: Any) -> list[torch.Tensor]:
    """What a continued run starts from; one before the newest is taken with a warning only."""
    caplog.clear()
    path = newest(folder)
    assert path is not None
    if path.name != max(expected):
        raise ValueError(caplog.text)
    return tensors(torch.load(path, weights_only=True))


def tensors(value: Any) -> list[torch.Tensor]:
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return [torch.tensor(hash(value))]


def outcome(path: Path, read: Callable[[], list[torch.Tensor]], good: list[torch.Tensor]) -> str:
    try:
        found = read()
    except ValueError as error:
        name = path.name.removesuffix(".sha256")
        return "detected" if name in str(error) else f"detected without the name: {error}"
    same = len(found) == len(good) and all(map(torch.equal, found, good))
    return "harmless" if same else "silently wrong"


def test_a_flipped_byte_is_detected_and_named_or_harmless(
    make_study, tmp_path, caplog, record_property
):
    caplog.set_level(logging.WARNING)
    study = make_study(tmp_path)
    harvested = harvest_for(study, "first")
    lost = functools.partial(study.trainer, callbacks=[Lose()])
    training = dataclasses.replace(study.training, checkpoint_every_steps=5)
    with pytest.raises(RuntimeError, match="the process is gone"):
        train(dataclasses.replace(study, trainer=lost, training=training), "first")
    [folder] = (tmp_path / "artifacts" / "train").glob("*.checkpoints")
    names = {path.name: path for path in folder.glob("*.ckpt")}
    assert len(names) == 2

    read_newest = functools.partial(read_checkpoint, folder, names, caplog)
    readers: list[tuple[list[Path], Callable[[], list[torch.Tensor]]]] = [
        (sorted(harvested.path.glob("shard_*")), functools.partial(read_harvest, harvested)),
        (sorted(harvested.path.iterdir()), functools.partial(read_checked, harvested)),
        ([harvested.path / "statistics.safetensors", harvested.path / "manifest.json",
          harvested.path / "DONE"], functools.partial(read_harvest, harvested)),
        (sorted(folder.glob("*.ckpt"))[-1:], read_newest),
        (sorted(folder.glob("*.sha256")), read_newest),
    ]  # fmt: skip
    good = [read() for _, read in readers]
    assert all(len(values) > 5 for values in good)
    dice, outcomes = random.Random(0), Counter[str]()
    for number in range(200):
        which = number % len(readers)
        paths, read = readers[which]
        path = dice.choice(paths)
        position, bit = dice.randrange(path.stat().st_size), dice.randrange(8)
        flip(path, position, bit)
        result = outcome(path, read, good[which])
        flip(path, position, bit)
        assert result in ("detected", "harmless"), (path.name, position, bit, result)
        outcomes[result] += 1
    for (_, read), values in zip(readers, good, strict=True):
        assert all(map(torch.equal, read(), values))
    record_property("flips", outcomes.total())
    record_property("detected", outcomes["detected"])
    record_property("harmless", outcomes["harmless"])


@pytest.mark.parametrize("name", ["shard_00000.safetensors", "manifest.json"])
def test_the_command_says_which_file_is_damaged(
    start, train_command, tmp_path, record_property, name
):
    command = train_command(generalist__num_tokens="640")
    harvest = [*command[:2], "harvest", *command[3:]]
    assert start(tmp_path, *harvest).end() == 0
    [path] = tmp_path.glob(f"artifacts/harvest/*/{name}")
    flip(path, path.stat().st_size * 2 // 3, 3)
    process = start(tmp_path, *command)
    assert process.end() == 1
    [line] = process.said()
    assert path.name in line
    assert line.endswith(f"mv {(kept := path.parent.relative_to(tmp_path))} {kept}.partial")
    record_property("flips", 1)
    record_property("detected", 1)
