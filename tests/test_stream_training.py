"""Training with activation=stream: the same whoever interrupts it, however many ranks share it."""

import dataclasses
import functools
import signal
import threading

import lightning
import pytest
import torch
from safetensors.torch import load_file

import ssae
from ssae.activation.reader import Activations
from ssae.activation.stream import Stream
from ssae.artifact.store import Artifact
from ssae.harvest import harvest, harvest_for
from ssae.retrieve import retrieve_for
from ssae.study import Study
from ssae.train import train

STREAM = Stream(window_tokens=256, lanes=4, calibration_tokens=400, lm_threads=1)


@pytest.fixture
def make(make_study, tmp_path):
    """Return a function that makes a study that streams: 20 steps, a little more than an epoch."""

    def make(name: str, stream: Stream = STREAM, **changes) -> Study:
        return make_study(tmp_path / name, activation=stream, **changes)

    return make


def with_callback(study: Study, callback: lightning.Callback) -> Study:
    trainer = functools.partial(study.trainer, callbacks=[callback])
    return dataclasses.replace(study, trainer=trainer)


def assert_same_weights(first, second) -> None:
    for file in ("sae.safetensors", "latents.safetensors"):
        a, b = load_file(first.path / file), load_file(second.path / file)
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]), name


def lm_threads_alive() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("activations")]


class At(lightning.Callback):
    """Does something when a step begins."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act, self.steps = step, act, []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.steps.append(trainer.global_step)
        if trainer.global_step == self.step:
            self.act()


def lose_machine() -> None:
    raise RuntimeError("the machine is gone")


def test_only_the_sample_touches_the_disk_and_the_sae_learns(make):
    study = make("one")
    arm = dataclasses.replace(study.arms["first"], num_tokens=150 * 64)
    study = dataclasses.replace(study, arms=study.arms | {"first": arm})
    artifact = train(study, "first")
    harvested = harvest_for(study, "first")
    assert 400 <= harvested.manifest["num_tokens"] < 400 + 32
    [folder] = (study.artifacts / "harvest").glob("*/DONE")
    assert folder.parent == harvested.path
    whole = Activations(harvest(study, retrieve_for(study, "first")))
    assert len(whole) > 2 * 400
    x = whole.slice(0, len(whole)).activations
    with torch.no_grad():
        recon = ssae.load(artifact.path)(x).recon
    assert (x - recon).square().sum() < 0.5 * (x - x.mean(0)).square().sum()
    assert not lm_threads_alive()


@pytest.mark.parametrize("lm_threads", [0, 1])
@pytest.mark.parametrize("stop", [10, 13, 19])
def test_interrupted_and_continued_equals_uninterrupted_to_the_bit(make, lm_threads, stop):
    stream = dataclasses.replace(STREAM, lm_threads=lm_threads)
    whole = train(make("whole", stream), "first")
    study = make("parts", stream)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train(with_callback(study, At(stop, lose_machine)), "first")
    assert not lm_threads_alive()
    seen = At(-1, None)
    continued = train(with_callback(study, seen), "first")
    assert seen.steps == list(range(10, 20))
    assert_same_weights(whole, continued)
    assert not lm_threads_alive()


def test_a_signal_ends_the_thread_and_the_run_continues_to_the_bit(make):
    whole, study = train(make("whole"), "first"), make("parts")
    stop = At(7, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(BaseException, match="checkpoint at step"):
        train(with_callback(study, stop), "first")
    assert not lm_threads_alive()
    assert_same_weights(whole, train(study, "first"))


def test_speed_does_not_reach_the_hash_and_what_decides_the_batches_does(make, make_study):
    study = make("same")
    base = train(study, "first")
    assert train(make("same", dataclasses.replace(STREAM, lm_threads=0)), "first") == base
    for changes in (
        {"window_tokens": 128},
        {"lanes": 2},
        {"calibration_tokens": 500},
    ):
        assert train(make("same", dataclasses.replace(STREAM, **changes)), "first") != base
    from_shards = make_study(study.artifacts.parent)
    assert train(from_shards, "first") != base


def test_a_batch_that_the_lanes_cannot_share_is_refused_before_anything_runs(make):
    stream = dataclasses.replace(STREAM, lanes=7)
    with pytest.raises(ValueError, match=r"lanes \(7\) must divide training.batch_size_tokens"):
        make("one", stream)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_share_the_lanes_and_train_what_one_rank_trains(make, launch, num_ranks):
    alone = make("alone", trainer=trainer_of(1, "64-true"))
    together = make("together", trainer=trainer_of(num_ranks, "64-true"))
    whole, parts = (make(name, trainer=trainer_of(num_ranks, "32-true")) for name in ("a", "b"))
    launch(num_ranks, [(together, "first", None), (whole, "first", None), (parts, "first", 13),
                       (parts, "first", None)])  # fmt: skip
    expected, found = train(alone, "first"), trained(together)
    a, b = (load_file(folder / "latents.safetensors") for folder in (expected.path, found.path))
    for name, value in a.items():
        assert torch.equal(b[name], value), name
    a, b = (load_file(folder / "sae.safetensors") for folder in (expected.path, found.path))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-9, atol=1e-11)
    assert_same_weights(trained(whole), trained(parts))


def trained(study: Study) -> Artifact:
    """The one artifact that other processes have trained."""
    [done] = (study.artifacts / "train").glob("*/DONE")
    return Artifact(done.parent, "train")


def trainer_of(num_ranks: int, precision: str) -> functools.partial:
    return functools.partial(
        lightning.Trainer, accelerator="cpu", devices=num_ranks, precision=precision,
        strategy="ddp" if num_ranks > 1 else "auto", log_every_n_steps=1,
        enable_progress_bar=False,
    )  # fmt: skip
