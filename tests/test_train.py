import dataclasses
import functools
import json
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file, save_file

import ssae
from ssae.activation.datamodule import ShardSource
from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact
from ssae.harvest import harvest_for
from ssae.objective.term import TERM
from ssae.retrieve import retrieve_for
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.train import train
from ssae.training.checkpoints import newest

BATCH = 64


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    files = ("sae.safetensors", "latents.safetensors")
    return {
        name: value for file in files for name, value in load_file(artifact.path / file).items()
    }


def assert_bitwise_equal(a: Artifact, b: Artifact) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() == {
        "W_enc", "W_dec", "b_enc", "b_dec", "fire_counts", "tokens_since_fired", "recycled"
    }  # fmt: skip
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def with_arm(study: Study, name: str, **changes) -> Study:
    arm = dataclasses.replace(study.arms[name], **changes)
    return dataclasses.replace(study, arms=study.arms | {name: arm})


def with_training(study: Study, **changes) -> Study:
    return dataclasses.replace(study, training=dataclasses.replace(study.training, **changes))


def trainer_with(callback: lightning.Callback, **changes) -> functools.partial:
    """A Trainer that runs one more callback, beside those that training passes."""

    def make(*, callbacks, **options):
        return lightning.Trainer(callbacks=[*callbacks, callback], **options)

    options = {
        "accelerator": "cpu", "devices": 1, "precision": "32-true", "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }  # fmt: skip
    return functools.partial(make, **(options | changes))


def fvu(sae, activations: Activations) -> float:
    x = activations.slice(0, len(activations)).activations
    with torch.no_grad():
        return float((x - sae(x).recon).square().sum() / (x - x.mean(0)).square().sum())


def test_a_trained_sae_is_finite_has_unit_directions_and_explains_the_activations(
    make_study, tmp_path
):
    study = with_arm(make_study(tmp_path), "first", num_tokens=150 * BATCH)
    artifact = train(study, "first")
    sae = ssae.load(artifact.path)
    assert all(torch.isfinite(weight).all() for weight in sae.parameters())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    activations = Activations(harvest_for(study, "first"))
    torch.manual_seed(0)
    fresh = study.sae(d_in=activations.d_in)
    with torch.no_grad():
        fresh.b_dec.copy_(activations.mean)
    assert fvu(sae, activations) < 0.5 * fvu(fresh, activations)
    latents = load_file(artifact.path / "latents.safetensors")
    assert latents["fire_counts"].sum() <= 4 * 150 * BATCH
    assert latents["fire_counts"].sum() > 3.5 * 150 * BATCH
    assert artifact.manifest["num_tokens"] == 150 * BATCH
    names = sorted(path.name for path in artifact.path.iterdir())
    assert names == ["DONE", "config.yaml", "latents.safetensors", "manifest.json", "sae.json",
                     "sae.safetensors"]  # fmt: skip


def test_one_seed_gives_the_same_bits_and_another_seed_does_not(make_study, tmp_path):
    runs = [train(make_study(tmp_path / name), "first") for name in "ab"]
    assert_bitwise_equal(*runs)
    other = train(make_study(tmp_path / "c", seed=1), "first")
    assert not torch.equal(weights(other)["W_dec"], weights(runs[0])["W_dec"])


def test_the_state_of_the_global_generator_does_not_reach_training(make_study, tmp_path):
    torch.manual_seed(11)
    first = train(make_study(tmp_path / "a"), "first")
    torch.manual_seed(12)
    assert_bitwise_equal(first, train(make_study(tmp_path / "b"), "first"))


def test_an_arm_starts_from_the_sae_of_another(make_study, tmp_path):
    study = with_arm(make_study(tmp_path), "second", num_tokens=1, lr=1e-12)
    second = train(study, "second")
    first = train(study, "first")  # was trained on the way
    assert len(list((tmp_path / "artifacts" / "train").glob("*/DONE"))) == 2
    for name, weight in load_file(first.path / "sae.safetensors").items():
        found = load_file(second.path / "sae.safetensors")[name]
        torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-6)
    metadata = json.loads((second.path / "sae.json").read_text())["metadata"]
    assert (metadata["arm"], metadata["hookpoint"]) == ("second", "gpt_neox.layers.1")


def test_an_arm_starts_from_a_directory(make_study, tmp_path):
    study = make_study(tmp_path)
    first = train(study, "first")
    elsewhere = with_arm(study, "second", init_from=str(first.path))
    assert train(elsewhere, "second") == train(study, "second")


def test_no_tokens_take_the_sae_as_it_is(make_study, tmp_path):
    study = with_arm(make_study(tmp_path), "second", num_tokens=0)
    second, first = train(study, "second"), train(study, "first")
    assert second.path != first.path
    files = [artifact.path / "sae.safetensors" for artifact in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_number_of_tokens_is_rounded_up_to_whole_steps(make_study, tmp_path):
    artifact = train(with_arm(make_study(tmp_path), "first", num_tokens=2 * BATCH + 1), "first")
    assert artifact.manifest["num_tokens"] == 3 * BATCH


def test_what_decides_the_weights_decides_the_address_and_nothing_else(make_study, tmp_path):
    study = with_arm(make_study(tmp_path), "first", num_tokens=BATCH)
    base = train(study, "first")
    same = with_training(study, checkpoint_every_steps=3)
    assert train(same, "first") == base
    for changed in (
        with_arm(study, "first", lr=1e-4),
        with_arm(study, "first", objective=TERM(tilt=1.0)),
        with_training(study, warmup_steps=7),
        dataclasses.replace(study, seed=5),
    ):
        assert train(changed, "first") != base


def saved_sae(folder: Path, d_in: int, scale: float = 1.0) -> str:
    torch.manual_seed(0)
    sae = TopKSAE(d_in, 64, k=4, auxk_coefficient=1 / 32, k_aux=8)
    with torch.no_grad():
        sae.b_dec.fill_(scale)
    ssae.save(sae, folder)
    return str(folder)


def test_an_sae_of_another_width_or_of_other_activations_is_refused(make_study, tmp_path):
    study = make_study(tmp_path)
    wide = saved_sae(tmp_path / "wide", d_in=24)
    with pytest.raises(ValueError, match=r"width 24, hookpoint gpt_neox\.layers\.1 gives 16"):
        train(with_arm(study, "second", init_from=wide), "second")
    foreign = saved_sae(tmp_path / "foreign", d_in=16, scale=1000.0)
    with pytest.raises(ValueError, match=r"has fvu \d+\.\d+ on these activations"):
        train(with_arm(study, "second", init_from=foreign), "second")
    assert not list((tmp_path / "artifacts" / "train").glob("*/sae.safetensors"))


def test_an_init_from_that_names_nothing_is_refused(make_study, tmp_path):
    study = make_study(tmp_path)
    with pytest.raises(ValueError, match=r"neither an arm \(first, second\) nor a saved SAE"):
        train(with_arm(study, "second", init_from="third"), "second")


def test_arms_that_start_from_themselves_or_each_other_are_refused(make_study, tmp_path):
    study = make_study(tmp_path)
    with pytest.raises(ValueError, match=r"arms\.second\.init_from leads in a circle: second from"):
        with_arm(study, "second", init_from="second")
    with pytest.raises(ValueError, match="circle: first from second from first"):
        with_arm(study, "first", init_from="second")


class Poison(lightning.Callback):
    """Makes a weight infinite after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.sae.b_dec[0] = float("inf")


@pytest.mark.parametrize(
    ("step", "message"),
    [(7, "step 7: the loss is nan, that of shard_.*others of 64; .*kept: .*=00000006.ckpt"),
     (20, "b_dec holds non-finite values at step 20")],
)  # fmt: skip
def test_a_run_that_diverges_stops_and_leaves_no_artifact(make_study, tmp_path, step, message):
    study = make_study(tmp_path, trainer=trainer_with(Poison(step)))
    study = with_training(study, checkpoint_every_steps=6)
    with pytest.raises(ValueError, match=message):
        train(study, "first")
    assert not list((tmp_path / "artifacts" / "train").glob("*/DONE"))
    assert not list((tmp_path / "artifacts" / "train").rglob("sae.safetensors"))
    [folder] = (tmp_path / "artifacts" / "train").glob("*.checkpoints")
    assert newest(folder) == folder / f"step={step // 6 * 6:08d}.ckpt"
    finite = torch.load(newest(folder), weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in finite.values())


def test_weights_that_diverge_are_not_saved(make_study, tmp_path):
    """Those of the last step before a checkpoint: its loss was that of the weights before."""
    study = make_study(tmp_path, trainer=trainer_with(Poison(12)))
    study = with_training(study, checkpoint_every_steps=6)
    with pytest.raises(ValueError, match="b_dec holds non-finite values at step 12"):
        train(study, "first")
    [folder] = (tmp_path / "artifacts" / "train").glob("*.checkpoints")
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["step=00000006.ckpt"]


def test_activations_that_are_not_finite_are_named_with_step_shard_and_token(
    make_study, tmp_path, monkeypatch
):
    study = with_training(make_study(tmp_path), checkpoint_every_steps=3)
    batch = ShardSource.batch

    def poisoned(self, step, rank, size):
        tokens = batch(self, step, rank, size)
        if step == 7:
            tokens.activations[5, 2] = float("inf")
        return tokens

    monkeypatch.setattr(ShardSource, "batch", poisoned)
    with pytest.raises(ValueError, match="step 7: the activations of shard_") as stopped:
        train(study, "first")
    activations = Activations(harvest_for(study, "first"))
    source = study.activation.source(study, "first", activations)
    index = int(source.order.indices(7)[5])
    assert activations.where(index) in str(stopped.value)
    [folder] = (tmp_path / "artifacts" / "train").glob("*.checkpoints")
    assert newest(folder) == folder / "step=00000006.ckpt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, r"trainer\.accumulate_grad_batches=2 .*TERM's normaliser"),
        ({"max_steps": 10}, r"trainer\.max_steps=10 .*generalist\.num_tokens"),
        ({"max_time": "00:01:00:00"}, r"trainer\.max_time=.*SIGTERM"),
        ({"limit_train_batches": 0.5}, r"trainer\.limit_train_batches=0\.5"),
        ({"fast_dev_run": True}, r"trainer\.fast_dev_run=True"),
        ({"logger": False}, r"trainer\.logger=False .*logger=none"),
        ({"enable_checkpointing": False}, "checkpoint_every_steps"),
    ],
)
def test_trainer_options_that_would_break_or_cut_a_run_are_refused_before_anything_is_made(
    make_study, tmp_path, options, message
):
    trainer = make_study(tmp_path).trainer
    with pytest.raises(ValueError, match=message):
        make_study(tmp_path, trainer=functools.partial(trainer, **options))


def test_trainer_options_at_their_defaults_are_not_refused(make_study, tmp_path):
    options = {
        "accumulate_grad_batches": 1, "max_steps": -1, "max_time": None, "fast_dev_run": False,
        "enable_checkpointing": True, "gradient_clip_val": 0.5, "detect_anomaly": True,
    }  # fmt: skip
    study = make_study(tmp_path)
    train(dataclasses.replace(study, trainer=functools.partial(study.trainer, **options)), "first")


class GradientNorms(lightning.Callback):
    """Notes the norm of the gradients that each step took."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer, module, *_) -> None:
        grads = [weight.grad for weight in module.parameters() if weight.grad is not None]
        self.norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))


def test_mixed_precision_can_clip_too(make_study, tmp_path):
    """Lightning refuses to clip what a fused optimiser unscales; ours is fused where it can be."""
    plain, clipped = GradientNorms(), GradientNorms()
    limit = 0.1  # below what any step has
    for watch, options in ((plain, {}), (clipped, {"gradient_clip_val": limit})):
        trainer = trainer_with(watch, precision="bf16-mixed", **options)
        train(make_study(tmp_path, trainer=trainer), "first")
    assert len(plain.norms) == len(clipped.norms) == 20
    assert min(plain.norms) > 1.5 * limit
    assert clipped.norms == pytest.approx([limit] * 20, rel=1e-4)


def test_a_callback_that_ends_a_run_early_is_named(make_study, tmp_path):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            trainer.should_stop = trainer.global_step == 8

    with pytest.raises(ValueError, match=r"ended at step 8 of 20.*trainer\.callbacks"):
        train(make_study(tmp_path, trainer=trainer_with(Stop())), "first")
    assert not list((tmp_path / "artifacts" / "train").glob("*/DONE"))


def test_a_damaged_starting_sae_is_refused(make_study, tmp_path):
    folder = saved_sae(tmp_path / "damaged", d_in=16)
    path = Path(folder) / "sae.safetensors"
    save_file(load_file(path) | {"b_dec": torch.full((16,), float("nan"))}, path)
    with pytest.raises(ValueError, match="b_dec holds non-finite values"):
        train(with_arm(make_study(tmp_path), "second", init_from=folder), "second")


def test_what_does_not_change_a_result_does_not_change_its_hash(make_study, tmp_path):
    study = make_study(tmp_path)
    first = train(study, "first")
    model = dataclasses.replace(study.language_model, device="cpu:0")
    faster = dataclasses.replace(study.training, checkpoint_every_steps=3)
    assert train(make_study(tmp_path, language_model=model, training=faster), "first") == first
    half = dataclasses.replace(study.language_model, dtype="bfloat16")
    assert retrieve_for(make_study(tmp_path, language_model=half), "first") == retrieve_for(
        study, "first"
    )
    assert train(make_study(tmp_path, language_model=half), "first") != first


def test_a_trainer_option_that_changes_the_weights_changes_the_hash(make_study, tmp_path):
    study = make_study(tmp_path)
    options = study.trainer.keywords
    clipped = functools.partial(lightning.Trainer, **options, gradient_clip_val=1e-3)
    slower = functools.partial(lightning.Trainer, **options | {"log_every_n_steps": 7})
    plain = train(study, "first")
    assert train(dataclasses.replace(study, trainer=slower), "first") == plain
    other = train(dataclasses.replace(study, trainer=clipped), "first")
    assert other != plain
    assert not torch.equal(weights(other)["W_dec"], weights(plain)["W_dec"])


def test_settings_that_the_starting_sae_overrules_are_named(make_study, tmp_path, caplog):
    folder = train(make_study(tmp_path), "first").path
    wider = functools.partial(TopKSAE, d_sae=128, k=4, auxk_coefficient=1 / 32, k_aux=8)
    study = with_arm(make_study(tmp_path, sae=wider), "second", init_from=str(folder))
    train(study, "second")
    assert "d_sae=128 (it has 64)" in caplog.text
