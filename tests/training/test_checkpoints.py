"""Checkpoints: whole or not there, and never read when they are not what was written."""

import errno
import functools
import hashlib
import os
import random
import subprocess
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ssae.activation.shards import Tokens
from ssae.objective.erm import ERM
from ssae.process.signals import StopRequest, unwrapped_interrupts
from ssae.sae.topk import TopKSAE
from ssae.training.checkpoints import Checkpoints, newest
from ssae.training.lit_sae import LitSAE
from ssae.training.trainer import disarm

EVERY = 5


class Data(lightning.LightningDataModule):
    """Noise that is a function of the step."""

    def train_dataloader(self):
        class Steps(torch.utils.data.Dataset):
            def __getitem__(self, step):
                generator = torch.Generator().manual_seed(step)
                ids = torch.zeros(16, dtype=torch.int32)
                return Tokens(torch.randn(16, 8, generator=generator), ids, ids, ids)

            def __len__(self):
                return 1000

        return DataLoader(Steps(), batch_size=None, sampler=range(self.trainer.global_step, 1000))


class Gamble(lightning.Callback):
    """Draws from every global generator in every step."""

    def __init__(self) -> None:
        self.drawn: dict[int, list[float]] = {}

    def on_train_batch_start(self, trainer, *_) -> None:
        draws = [torch.rand(()).item(), np.random.rand(), random.random()]
        self.drawn[trainer.global_step] = [*draws, np.random.randn(), random.gauss(0, 1)]


def fit(folder: Path, num_steps: int, *more: lightning.Callback, seed: int = 0) -> LitSAE:
    """Train from the newest checkpoint in the folder."""
    lightning.seed_everything(seed, verbose=False)
    lit = LitSAE(
        TopKSAE(8, 32, k=4, auxk_coefficient=1 / 32, k_aux=8), ERM(),
        optimizer=functools.partial(torch.optim.Adam), lr=1e-2, warmup_steps=3, decay_share=0.2,
        num_steps=20, mean_norm=2.8, variance=8.0, dead_after_tokens=100,
        sparsity_warmup_steps=0, screening="exact",
    )  # fmt: skip
    checkpoints = Checkpoints(folder, EVERY, StopRequest())
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, logger=False, callbacks=[
            *more, checkpoints], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    disarm(trainer)
    with unwrapped_interrupts():
        trainer.fit(lit, Data(), ckpt_path=checkpoints.newest(), weights_only=True)
    return lit


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 5 and 10."""
    fit(tmp_path / "run", 12)
    return tmp_path / "run"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << (position % 8)
    path.write_bytes(content)


def test_the_newest_two_are_kept_beside_what_sha256sum_writes(tmp_path):
    fit(tmp_path, 18)
    assert names(tmp_path) == [
        "step=00000010.ckpt", "step=00000010.ckpt.sha256",
        "step=00000015.ckpt", "step=00000015.ckpt.sha256",
    ]  # fmt: skip
    assert newest(tmp_path) == tmp_path / "step=00000015.ckpt"
    for path in tmp_path.glob("*.ckpt"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.with_suffix(".ckpt.sha256").read_text() == f"{digest}  {path.name}\n"
        assert torch.load(path, weights_only=True)["global_step"] == int(path.stem[5:])


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert newest(tmp_path / "nowhere") is None
    (tmp_path / "step=00000005.partial").write_bytes(b"torn")
    (tmp_path / "step=00000005.ckpt.sha256").write_text("of a checkpoint that was never renamed")
    assert newest(tmp_path) is None


def test_torch_itself_reads_a_flipped_byte_as_a_weight(two):
    """Why there is a digest."""
    path = two / "step=00000010.ckpt"
    before = torch.load(path, weights_only=True)["state_dict"]["sae.W_dec"]
    flip(path, path.read_bytes().index(before.numpy().tobytes()) + 3)
    after = torch.load(path, weights_only=True)["state_dict"]["sae.W_dec"]
    assert not torch.equal(before, after)


@pytest.mark.parametrize("damage", ["flip", "cut", "digest", "digest gone", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(two, caplog, damage):
    path, digest = two / "step=00000010.ckpt", two / "step=00000010.ckpt.sha256"
    size = path.stat().st_size
    generator = random.Random(0)
    if damage == "flip":
        flip(path, generator.randrange(size))
    elif damage == "cut":
        os.truncate(path, size - 1)
    elif damage == "digest":
        flip(digest, generator.randrange(digest.stat().st_size))
    elif damage == "digest gone":
        digest.unlink()
    else:
        os.truncate(path, 0)
    assert newest(two) == two / "step=00000005.ckpt"
    assert "step=00000010.ckpt is damaged" in caplog.text
    expected = fit(two.parent / "other", 15).state_dict()
    found = fit(two, 15).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert newest(two) == two / "step=00000015.ckpt"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(two):
    for path in two.glob("*.ckpt"):
        flip(path, 1000)
    with pytest.raises(ValueError, match=r"every checkpoint .*00010.*00005.*: rm -r"):
        fit(two, 15)


def test_what_an_interrupted_writer_left_is_removed(two):
    (two / "step=00000015.partial").write_bytes(b"torn")
    (two / "step=00000015.ckpt.sha256.partial").write_bytes(b"torn")
    fit(two, 11)
    assert names(two) == [
        "step=00000005.ckpt", "step=00000005.ckpt.sha256",
        "step=00000010.ckpt", "step=00000010.ckpt.sha256",
    ]  # fmt: skip


@pytest.mark.parametrize("when", range(2))
def test_a_writer_lost_between_its_renames_costs_the_checkpoint_only(tmp_path, monkeypatch, when):
    whole = fit(tmp_path / "whole", 15).state_dict()
    replace, calls = Path.replace, []

    def lose(self, target):
        if Path(target).name.startswith("step=00000010"):
            if len(calls) == when:
                raise KeyboardInterrupt
            calls.append(target)
        return replace(self, target)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lose)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, 15)
    assert newest(folder) == folder / "step=00000005.ckpt"
    found = fit(folder, 15).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.items())
    assert len(names(folder)) == 4


def test_the_same_step_is_saved_once(tmp_path):
    class Again(lightning.Callback):
        def on_train_end(self, trainer, module):
            [checkpoints] = trainer.checkpoint_callbacks
            before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
            checkpoints.save(trainer)
            assert before == {path: path.stat().st_ino for path in tmp_path.iterdir()}
            assert len(before) == 4

    fit(tmp_path, 10, Again())
    fit(tmp_path, 10, Again())  # what it continues from


def test_random_numbers_go_on_where_the_checkpoint_was(tmp_path):
    whole, first, second = Gamble(), Gamble(), Gamble()
    fit(tmp_path / "whole", 14, whole)
    fit(tmp_path / "run", 12, first)
    fit(tmp_path / "run", 14, second, seed=1)
    assert list(second.drawn) == [10, 11, 12, 13]
    assert whole.drawn == first.drawn | second.drawn
    assert len({tuple(draws) for draws in whole.drawn.values()}) == 14


def full_disk(folder: Path) -> None:
    """Mount a file system with room for one checkpoint or two."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "disk"
    full_disk(folder)
    try:
        with pytest.raises(
            ValueError, match=r"cannot write .*MB, 0\.0 MB free.*No space left"
        ) as e:
            fit(folder, 20)
        assert f"{folder}/step=" in str(e.value)
        assert "artifacts=" in str(e.value)
        last = newest(folder)
        assert last is not None
        assert not list(folder.glob("*.partial"))
        step = int(last.stem[5:])
        subprocess.run(["mount", "-o", "remount,size=2m", folder], check=True)
        expected = fit(tmp_path / "whole", 20).state_dict()
        found = fit(folder, 20).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert step < 20
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("at", ["fsync", "write"])
def test_an_error_while_writing_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, at):
    class Fill(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 8:
                monkeypatch.setattr(f"ssae.training.checkpoints.{where}", fail)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"fsync": "os.fsync", "write": "_HashingWriter.write"}[at]
    with pytest.raises(
        ValueError, match=r"00010\.ckpt .* MB free.*No space left.*is kept: .*00005\.ckpt"
    ):
        fit(tmp_path, 20, Fill())
    assert names(tmp_path) == ["step=00000005.ckpt", "step=00000005.ckpt.sha256"]
    assert newest(tmp_path) is not None
