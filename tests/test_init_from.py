"""Arms that start from SAEs in the formats of other libraries, or from the hub."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ssae
from ssae.sae import files
from ssae.sae.formats.content import ARCHITECTURES, with_training_defaults
from ssae.study import Study
from ssae.train import train


def starting_from(study: Study, init: Any, **changes: Any) -> Study:
    arm = dataclasses.replace(study.arms["second"], init_from=str(init), **changes)
    return dataclasses.replace(study, arms=study.arms | {"second": arm})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae.safetensors")


def random_sae(study: Study, architecture: str, norm: float = 1.0) -> Any:
    torch.manual_seed(0)
    known = {"d_in": 16, "d_sae": 64, "subtract_b_dec": True}
    known |= {"topk": {"k": 24}, "jumprelu": {"initial_threshold": 0.1}}.get(architecture, {})
    sae = ARCHITECTURES[architecture](**with_training_defaults(architecture, known))
    with torch.no_grad():
        sae.W_dec.mul_(norm * torch.linspace(0.5, 1.5, 64)[:, None])
        sae.W_enc_T.div_(2 * norm)  # recon is x, about: 64 / 16 directions, half of them active
    return sae.eval()


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning", "sparsify"])
def test_training_goes_on_as_from_our_own_format(
    format: str, make_study: Callable[..., Study], tmp_path: Path
):
    study = make_study(tmp_path)
    first = train(study, "first").path
    ssae.save(ssae.load(first), tmp_path / "saved", format=format)
    expected = weights(train(starting_from(study, first), "second").path)
    found = weights(train(starting_from(study, tmp_path / "saved"), "second").path)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_an_sae_taken_as_it_is_becomes_one_of_ours(
    make_study: Callable[..., Study], tmp_path: Path
):
    sae = random_sae(make_study(tmp_path), "jumprelu", norm=3.0)
    metadata = {"hookpoint": "gpt_neox.layers.1", "language_model": "m"}
    ssae.save(sae, tmp_path / "saved", metadata, format="saelens")
    study = starting_from(make_study(tmp_path), tmp_path / "saved", num_tokens=0)
    made = train(study, "second")
    assert files.detect(made.path) == "ssae"
    loaded = ssae.load(made.path)
    for name, weight in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    said = files.load_description(made.path)["metadata"]
    assert said.items() >= (metadata | {"copied_from": str(tmp_path / "saved")}).items()


def test_the_hub_and_a_copy_of_it_are_the_same_artifact(
    make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ssae.sae import hub

    ssae.save(random_sae(make_study(tmp_path), "relu"), tmp_path / "copy", format="saelens")

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("someone/saes", None)
        assert "layer_1/cfg.json" in allow_patterns
        (tmp_path / "cache").mkdir(exist_ok=True)
        if not (tmp_path / "cache/layer_1").exists():
            (tmp_path / "cache/layer_1").symlink_to(tmp_path / "copy")
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", snapshot_download)
    study = make_study(tmp_path)
    by_id = train(starting_from(study, "someone/saes/layer_1", num_tokens=0), "second")
    by_path = train(starting_from(study, tmp_path / "copy", num_tokens=0), "second")
    assert by_id == by_path


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "topk"])
def test_decoder_norms_of_others_move_into_the_latents_before_training(
    architecture: str,
    make_study: Callable[..., Study],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    sae = random_sae(make_study(tmp_path), architecture, norm=2.0)
    ssae.save(sae, tmp_path / "saved", format="saelens")
    # One step at a learning rate of next to nothing: what is saved is what training began with.
    study = starting_from(make_study(tmp_path), tmp_path / "saved", num_tokens=64, lr=1e-30)
    trained = ssae.load(train(study, "second").path)
    assert torch.allclose(trained.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)
    assert "decoder norms of" in caplog.text
    assert ("chosen anew" in caplog.text) == (architecture == "topk")
    if architecture != "topk":
        x = torch.randn(50, 16)
        assert torch.allclose(trained(x).recon, sae(x).recon, atol=1e-5)


def test_what_is_no_sae_says_why(make_study: Callable[..., Study], tmp_path: Path):
    study = make_study(tmp_path)
    (tmp_path / "empty").mkdir()
    for init, why in (
        ("third", "there is no such folder"),
        (tmp_path / "empty", "A format needs"),
        ("nobody/nothing", "HF_HUB_OFFLINE"),
    ):
        with pytest.raises(
            ValueError, match=rf"arms\.second\.init_from=.* neither an arm \(first, second\).*{why}"
        ):
            train(starting_from(study, init), "second")


def test_what_only_steers_training_follows_the_config(
    make_study: Callable[..., Study], tmp_path: Path
):
    sae = random_sae(make_study(tmp_path), "jumprelu")
    ssae.save(sae, tmp_path / "saved", format="saelens")
    study = starting_from(make_study(tmp_path), tmp_path / "saved", num_tokens=64, lr=1e-30)
    asked = {"l0_coefficient": 0.25, "target_l0": 7, "bandwidth": 0.5, "threshold_lr": 1e-30}
    make = functools.partial(type(sae), d_sae=32, initial_threshold=1.0, k_aux=4,
                             auxk_coefficient=0.0, **asked)  # fmt: skip
    artifact = train(dataclasses.replace(study, sae=make), "second")
    trained = ssae.load(artifact.path)
    assert asked.items() <= trained.hyperparameters.items()
    assert trained.d_sae == 64  # what it computes is its own
    x = torch.randn(50, 16)
    assert torch.allclose(trained(x).recon, sae(x).recon, atol=1e-5)
    changed = functools.partial(make.func, **(make.keywords | {"target_l0": 8}))
    assert train(dataclasses.replace(study, sae=changed), "second").path != artifact.path
