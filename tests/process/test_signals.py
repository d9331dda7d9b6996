"""Signals end a run in order: the step, a checkpoint, an exit code that says what to do."""

import contextlib
import functools
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest

from ssae.artifact.store import build
from ssae.process import signals
from ssae.process.signals import (
    SIGNALS,
    Interrupted,
    StopRequest,
    disarm,
    interrupt_on_signals,
    unwrapped_interrupts,
)


@pytest.fixture(autouse=True)
def handlers():
    """Handlers are the process's, which runs other tests too."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signals._taken.clear()


@pytest.mark.parametrize(
    ("signum", "requeue", "status"),
    [
        (signal.SIGTERM, None, 143), (signal.SIGINT, None, 130), (signal.SIGUSR1, None, 75),
        (signal.SIGUSR2, None, 75), (signal.SIGUSR1, "1", 75),
        (signal.SIGTERM, "1", 0), (signal.SIGINT, "1", 0), (signal.SIGTERM, "0", 143),
    ],
)  # fmt: skip
def test_the_exit_code_tells_a_scheduler_whether_to_start_again(
    monkeypatch, signum, requeue, status
):
    monkeypatch.delenv("SSAE_REQUEUE", raising=False)
    if requeue is not None:
        monkeypatch.setenv("SSAE_REQUEUE", requeue)
    interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt) as stopped:
        signal.raise_signal(signum)
    assert stopped.value.status == status
    assert "the same command again" in str(stopped.value)
    again = pickle.loads(pickle.dumps(stopped.value))  # a job of a parallel sweep raises it
    assert (again.status, str(again)) == (status, str(stopped.value))


def test_a_signal_the_process_was_started_to_ignore_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `nohup`, `&` in a script
    interrupt_on_signals()
    signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.signum is None


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_request_to_stop_is_noted_and_does_not_interrupt(signum, capfd):
    interrupt_on_signals()
    with StopRequest() as stop:
        signal.raise_signal(signum)
        assert stop.signum == signum
        stop.honoured = signum
    assert signal.Signals(signum).name in capfd.readouterr().err
    with pytest.raises(Interrupted):  # the handlers from before
        signal.raise_signal(signum)


def stop_during(*signums: int, error: Exception | None = None) -> None:
    with StopRequest():
        for signum in signums:
            signal.raise_signal(signum)
        if error is not None:
            raise error


def test_a_signal_that_came_too_late_to_be_honoured_is_sent_on():
    interrupt_on_signals()
    with pytest.raises(Interrupted) as stopped:
        stop_during(signal.SIGTERM)
    assert stopped.value.status == 143
    with pytest.raises(ValueError, match="what else went wrong"):
        stop_during(signal.SIGTERM, error=ValueError("what else went wrong"))


def test_a_second_sigint_stops_at_once_but_the_launchers_copy_of_it_does_not(monkeypatch):
    twice = (signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(signals, "SAME_SECONDS", 1e9)
    with pytest.raises(ValueError, match="got here"):
        stop_during(*twice, signal.SIGTERM, error=ValueError("got here"))
    monkeypatch.setattr(signals, "SAME_SECONDS", -1)
    with pytest.raises(Interrupted, match="at once") as stopped:
        stop_during(*twice, error=ValueError("got here"))
    assert stopped.value.status == 130
    with pytest.raises(ValueError, match="got here"):
        stop_during(signal.SIGINT, signal.SIGTERM, signal.SIGTERM, error=ValueError("got here"))


class Ending(lightning.LightningModule):
    """Every step ends the run."""

    def __init__(self, end: Callable[[], None]) -> None:
        super().__init__()
        self.end = end

    def training_step(self, batch: int) -> None:
        self.end()

    def predict_step(self, batch: int) -> None:
        self.end()

    def configure_optimizers(self) -> None: ...


@pytest.mark.filterwarnings("ignore:.*no optimizer")
@pytest.mark.parametrize("run", [lightning.Trainer.fit, lightning.Trainer.predict])
def test_a_trainer_passes_interrupts_on_and_the_next_one_is_heard(run, tmp_path):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=tmp_path, **options
    )
    disarm(trainer)
    interrupt_on_signals()
    interrupted = Ending(functools.partial(signal.raise_signal, signal.SIGINT))
    for _ in range(2):
        with pytest.raises(Interrupted, match="again to continue"), unwrapped_interrupts():
            run(trainer, interrupted, iter([0]))
        assert signal.getsignal(signal.SIGINT) is signals.interrupt
    with pytest.raises(SystemExit) as ended, unwrapped_interrupts():
        run(trainer, Ending(functools.partial(sys.exit, 7)), iter([0]))
    assert ended.value.code == 7


def checkpoint_step(folder: Path) -> int:
    [*_, last] = sorted(folder.glob("artifacts/train/*.checkpoints/*.ckpt"))
    return int(last.stem[5:])


def weights(folder: Path) -> list[bytes]:
    [path] = folder.glob("artifacts/train/*/DONE")
    files = ("sae.safetensors", "latents.safetensors")
    return [path.with_name(name).read_bytes() for name in files]


@pytest.mark.slow
def test_training_stopped_by_signals_and_continued_ends_as_without(train_command, start, tmp_path):
    command = train_command(generalist__num_tokens=str(64 * 1200))
    (tmp_path / "whole").mkdir()
    whole = start(tmp_path / "whole", *command)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    step = 0
    for signum, status in ((signal.SIGUSR1, 75), (signal.SIGINT, 130)):
        process = start(stopped, *command)
        process.wait_for(f"artifacts/train/*.checkpoints/step={step // 100 * 100 + 100:08d}.ckpt")
        process.popen.send_signal(signum)
        assert process.end() == status
        assert step < checkpoint_step(stopped) < 1200
        step = checkpoint_step(stopped)
        noted, ended = process.said()
        assert noted.startswith(f"{signum.name}: stopping after this step")
        where = f"checkpoint at step {step} of 1200"
        assert ended == f"generalist: {where}; give the same command again to continue"
        assert "Traceback" not in process.err.read_text()
    process = start(stopped, *command)
    assert process.end() == whole.end() == 0
    assert weights(stopped) == weights(tmp_path / "whole")
    assert not list(stopped.glob("artifacts/train/*.checkpoints"))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_at_one_step(train_command, start, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(tmp_path, *torchrun, *train_command(trainer__devices="2"))
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt")
    ranks = {}
    for pid in process.children():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks.update({word: pid for word in environment if word.startswith(b"RANK=")})
    os.kill(ranks[b"RANK=1"], signal.SIGTERM)
    assert process.end() != 0  # torchrun's own, for ranks that ended with 143
    step = checkpoint_step(tmp_path)
    assert process.said() == [
        f"generalist: checkpoint at step {step} of 4000; give the same command again to continue"
    ]
    assert "exitcode  : 143" in process.err.read_text()
    assert not list(tmp_path.glob("artifacts/train/*.checkpoints/*.partial"))


@pytest.mark.slow
def test_a_signal_ends_a_sweep_and_not_only_its_job(train_command, start, tmp_path):
    process = start(tmp_path, *train_command(), "-m", "seed=0,1")
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt")
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 143
    assert len(process.said()) == 2
    assert len(list(tmp_path.glob("artifacts/train/*.checkpoints"))) == 1


def test_a_signal_that_got_lost_ends_the_verb_before_its_next_artifact(monkeypatch, tmp_path):
    monkeypatch.setattr(signals, "_taken", [])
    with contextlib.suppress(KeyboardInterrupt):  # as a __del__ would
        signals.interrupt(signal.SIGTERM, None)
    with pytest.raises(signals.Interrupted) as error:
        build(tmp_path, "verb", {}, lambda folder: {})
    assert error.value.status == 143


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_training_a_signal_ends_the_verb_at_once(
    train_command, start, tmp_path, signum, status
):
    process = start(tmp_path, *train_command())
    process.wait_for("artifacts/corpus")
    process.popen.send_signal(signum)
    assert process.end() == status
    assert process.said() == ["interrupted; give the same command again to continue"]
    assert not list(tmp_path.glob("artifacts/train/*/DONE"))
