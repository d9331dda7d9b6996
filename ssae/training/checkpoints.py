"""Checkpoints of a run in training: each is whole or not there, and is that of all ranks.

    step=00000500.ckpt          Lightning's, consolidated: weights, optimiser, schedule, loops,
                                counters, thresholds, and the generators of every rank
    step=00000500.ckpt.sha256   as `sha256sum` writes it

A checkpoint gets its name by one rename after its bytes and its digest are on disk. It is read only
if it still has that digest: torch does not compare the checksums of its own format, so a flipped
byte would become a weight.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from ssae.artifact.manifest import sync
from ssae.artifact.together import from_rank_zero
from ssae.process import generators
from ssae.process.ranks import all_reduce, rank, world_size
from ssae.process.signals import StopRequest

log = logging.getLogger(__name__)

AGREE_EVERY_STEPS = 8
"""Ranks ask each other this often whether a signal came: that waits for the device."""


def newest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder, None if it has never had one.

    Raises:
        ValueError: there are checkpoints and all of them are damaged.
    """
    paths = sorted(folder.glob("step=*.ckpt"), reverse=True)
    for path in paths:
        if _is_whole(path):
            return path
        log.warning("%s is damaged (its sha256 is not the one beside it); trying an older", path)
    if paths:
        raise ValueError(
            f"every checkpoint in {folder} is damaged ({', '.join(path.name for path in paths)}); "
            f"to train from the start: rm -r {folder}"
        )
    return None


class Checkpoints(Checkpoint):
    """Saves every so many steps, and when a signal asks the run to stop; keeps the newest two.

    Args:
        folder: of this run alone; there is one as soon as there is a checkpoint.
        every_steps: between two checkpoints.
        stop: notes signals; one that came to any rank stops all ranks after the same step.
    """

    def __init__(self, folder: Path, every_steps: int, stop: StopRequest) -> None:
        self.folder, self.every_steps, self.stop = folder, every_steps, stop
        self._whole: list[Path] = []
        self._generators: list[dict[str, Any]] | None = None

    def newest(self) -> Path | None:
        """Return the checkpoint to continue from, the same on every rank; see `newest`."""
        found = from_rank_zero(lambda: newest(self.folder))
        self._whole = [] if found is None else [found]
        return found

    def kept(self) -> str:
        """Say what a run that cannot go on leaves."""
        if not self._whole:
            return "it has no checkpoint yet"
        return f"its last checkpoint is kept: {self._whole[-1]}"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove what an interrupted writer left."""
        trainer.strategy.checkpoint_io = _File()
        if trainer.is_global_zero:
            for path in self.folder.glob("step=*.partial"):
                path.unlink()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the random numbers of the checkpoint: a loader has drawn some by now."""
        if self._generators is not None:
            generators.restore(self._generators[min(rank(), len(self._generators) - 1)])
            self._generators = None

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Save, if it is time or the run has to stop."""
        signum = self._agreed_signal(trainer)
        if signum or trainer.global_step % self.every_steps == 0:
            self.save(trainer)
        if signum:
            self.stop.honoured = signum
            trainer.should_stop = True

    def save(self, trainer: L.Trainer) -> None:
        """Save a checkpoint of this step, unless there is one; every rank must call.

        Raises:
            ValueError: it cannot be written; the ones before are as they were.
        """
        path = self.folder / f"step={trainer.global_step:08d}.ckpt"
        if path in self._whole:
            return
        temporary = path.with_suffix(".partial")
        trainer.save_checkpoint(temporary, weights_only=False)
        file = trainer.strategy.checkpoint_io
        assert isinstance(file, _File)
        from_rank_zero(lambda: self._publish(file, temporary, path))
        self._whole = [*self._whole[-1:], path]

    def _publish(self, file: "_File", temporary: Path, path: Path) -> None:
        try:
            if file.error is not None:
                raise file.error
            digest = path.with_name(path.name + ".sha256")
            unnamed = path.with_name(path.name + ".sha256.partial")
            unnamed.write_text(_digest_line(file.digest, path), encoding="utf-8")
            sync(unnamed)
            unnamed.replace(digest)
            temporary.replace(path)
            sync(self.folder)
        except (OSError, RuntimeError) as error:
            for left in self.folder.glob("step=*.partial"):
                left.unlink()
            free = shutil.disk_usage(self.folder).free
            raise ValueError(
                f"cannot write {path} ({file.num_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB free): "
                f"{error}; {self.kept()}. Make room, or copy {self.folder.parents[1]} to a larger "
                "disk and set artifacts=<the copy>; then give the same command again"
            ) from error
        kept = {*self._whole[-1:], path}
        for old in set(self.folder.glob("step=*.ckpt")) - kept:
            old.unlink()
            old.with_name(old.name + ".sha256").unlink(missing_ok=True)

    def _agreed_signal(self, trainer: L.Trainer) -> int:
        """Return the signal that the ranks stop for, 0 for none."""
        signum = self.stop.signum or 0
        if world_size() == 1:
            return signum
        step = trainer.global_step
        if step % AGREE_EVERY_STEPS and step != trainer.max_steps:
            return 0
        own = torch.tensor(signum, device=trainer.strategy.root_device)
        return int(all_reduce(own, dist.ReduceOp.MAX))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the random number generators of every rank."""
        states: list[Any] = [generators.states()]
        if world_size() > 1:
            own, states = states[0], states * world_size()
            dist.all_gather_object(states, own)
        return {"generators": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states; they are set when training starts."""
        self._generators = state_dict["generators"]


class _File(TorchCheckpointIO):
    """Writes straight into the file, hashing: Lightning's writes to memory, TMPDIR, and there.

    An error is kept, not raised: the other ranks wait for rank 0.
    """

    digest = ""
    num_bytes = 0
    error: OSError | RuntimeError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        self.error, self.num_bytes = None, _num_bytes(checkpoint)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("wb") as file:
                writer = _HashingWriter(file)
                try:
                    torch.save(checkpoint, writer)  # pyright: ignore[reportArgumentType]
                except RuntimeError as error:  # torch's, on top of the one that says why
                    raise writer.error or error from error
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            self.error = error
        else:
            self.digest = writer.sha256.hexdigest()


class _HashingWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.sha256.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _is_whole(path: Path) -> bool:
    try:
        expected = path.with_name(path.name + ".sha256").read_bytes()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    return expected == _digest_line(found, path).encode()


def _digest_line(digest: str, path: Path) -> str:
    return f"{digest}  {path.name}\n"


def _num_bytes(value: Any) -> int:
    """Return the size of the tensors in nested dictionaries and lists."""
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0
