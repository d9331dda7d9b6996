"""Weights that SAELens wrote give its latents and reconstructions here, and the reverse."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ssae
from ssae.sae import files

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sae_lens = pytest.importorskip("sae_lens", reason="needs the extra peers: pip install .[peers]")

from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening  # noqa: E402

D_IN, D_SAE, K = 24, 90, 7
WIDTHS = [10, 40, 90]
INFERENCE = {"standard": "relu", "topk": "topk", "gated": "gated", "jumprelu": "jumprelu"}
TRAINING: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": K},
    "gated": {},
    "jumprelu": {},
    "batchtopk": {"k": 7.3},
    "matryoshka_batchtopk": {"k": 7.0, "matryoshka_widths": WIDTHS},
}
OURS = INFERENCE | {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}


def fill(sae: Any, seed: int = 0) -> Any:
    """Give every weight a random value of realistic size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.state_dict().items():
            if name == "topk_threshold":
                weight.fill_(1.7)
                continue
            weight.normal_(generator=generator)
            if name.startswith("W_"):
                weight.div_(D_IN**0.5)
            elif name == "threshold":
                weight.abs_().add_(0.2)
            elif name == "r_mag":
                weight.mul_(0.3)
    return sae


def inference_sae(architecture: str, **changes: Any) -> Any:
    settings = {"d_in": D_IN, "d_sae": D_SAE, "architecture": architecture}
    settings |= {"k": K} if architecture == "topk" else {}
    return fill(sae_lens.SAE.from_dict(settings | changes))


def training_sae(architecture: str, **changes: Any) -> Any:
    settings = {"d_in": D_IN, "d_sae": D_SAE, "architecture": architecture}
    return fill(sae_lens.TrainingSAE.from_dict(settings | TRAINING[architecture] | changes))


def theirs(folder: Path) -> Any:
    return sae_lens.SAE.load_from_disk(folder)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", INFERENCE)
def test_an_sae_for_use_is_the_same_here(
    architecture: str, apply_b_dec_to_input: bool, same: Callable[..., None], tmp_path: Path
):
    sae = inference_sae(architecture, apply_b_dec_to_input=apply_b_dec_to_input)
    sae.save_model(tmp_path)
    ours = ssae.load(tmp_path)
    assert ours.architecture == INFERENCE[architecture]
    assert ours.subtract_b_dec == apply_b_dec_to_input
    same(ours, sae.encode, sae.decode)


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("architecture", files.FORMATS["saelens"].HOLDS)
def test_an_sae_of_ours_is_the_same_there(
    architecture: str,
    subtract_b_dec: bool,
    make_sae: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
):
    ours = make_sae(architecture, subtract_b_dec=subtract_b_dec)
    metadata = {"hookpoint": "gpt_neox.layers.3", "language_model": "EleutherAI/pythia-70m"}
    ssae.save(ours, tmp_path, metadata, format="saelens")
    sae = theirs(tmp_path)
    same(ours, sae.encode, sae.decode)
    assert sae.cfg.metadata.hook_name == "gpt_neox.layers.3"
    assert sae.cfg.metadata.model_name == "EleutherAI/pythia-70m"
    again = ssae.load(tmp_path)
    same(again, sae.encode, sae.decode)
    assert files.read(tmp_path).metadata.items() >= metadata.items()


@pytest.mark.parametrize("rescale", [True, False])
def test_a_top_k_by_decoder_norm_is_folded(
    rescale: bool, same: Callable[..., None], tmp_path: Path
):
    sae = inference_sae("topk", rescale_acts_by_decoder_norm=rescale)
    sae.save_model(tmp_path)
    ours = ssae.load(tmp_path)
    same(ours, sae.encode, sae.decode)
    unit = (ours.W_dec.norm(dim=1) - 1).abs().max().item() < 1e-5
    assert unit == rescale


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize(
    ("architecture", "rescale"),
    [
        (name, rescale)
        for name, own in TRAINING.items()
        for rescale in [None, *([True, False] * ("k" in own))]
    ],
)
def test_a_training_checkpoint_is_what_saelens_makes_of_it_for_use(
    architecture: str,
    apply_b_dec_to_input: bool,
    rescale: bool | None,
    same: Callable[..., None],
    tmp_path: Path,
):
    changes: dict[str, Any] = {"apply_b_dec_to_input": apply_b_dec_to_input}
    if rescale is not None:
        changes["rescale_acts_by_decoder_norm"] = rescale
    sae = training_sae(architecture, **changes)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "use")
    if architecture == "batchtopk" and rescale is None:
        drop(tmp_path / "checkpoint", "rescale_acts_by_decoder_norm")  # on by default
    ours, used = ssae.load(tmp_path / "checkpoint"), theirs(tmp_path / "use")
    assert ours.architecture == OURS[architecture]
    same(ours, used.encode, used.decode)
    if architecture == "matryoshka_batchtopk":
        assert ours.hyperparameters["group_sizes"] == [10, 30, 50]
    if architecture == "batchtopk":
        assert ours.hyperparameters["k"] == 7


def drop(folder: Path, key: str) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg[key]
    (folder / "cfg.json").write_text(json.dumps(cfg))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_a_checkpoint_of_scaled_activations_is_folded(
    architecture: str, apply_b_dec_to_input: bool, same: Callable[..., None], tmp_path: Path
):
    sae = training_sae(
        architecture,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations="expected_average_only_in",
    )
    sae.save_model(tmp_path / "checkpoint")
    scaler = ActivationScaler(scaling_factor=0.37)
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    ours = ssae.load(tmp_path / "checkpoint")
    sae.fold_activation_norm_scaling_factor(0.37)
    sae.save_inference_model(tmp_path / "use")
    used = theirs(tmp_path / "use")
    same(ours, used.encode, used.decode)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("architecture", TRAINING)
def test_a_checkpoint_of_whitened_activations_is_folded(
    architecture: str,
    apply_b_dec_to_input: bool,
    same: Callable[..., None],
    x: Tensor,
    tmp_path: Path,
):
    sae = training_sae(
        architecture,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations="covariance_whitening",
    )
    sae.save_model(tmp_path / "checkpoint")
    mean, covariance = x.double().mean(0), x.double().T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    whitening = ActivationWhitening(
        mean=mean,
        matrix=vectors * values.rsqrt(),
        inverse_matrix=(values.sqrt()[:, None] * vectors.T),
    )
    scaler = ActivationScaler(whitening=whitening)
    scaler.save(str(tmp_path / "checkpoint/activation_scaler.json"))
    ours = ssae.load(tmp_path / "checkpoint")
    sae.fold_activation_whitening(*dataclasses.astuple(whitening))
    sae.save_inference_model(tmp_path / "use")
    used = theirs(tmp_path / "use")
    same(ours, used.encode, used.decode)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_normalisation_per_token_is_refused(scaling: str, tmp_path: Path):
    inference_sae("standard", normalize_activations=scaling).save_model(tmp_path)
    with pytest.raises(ValueError, match=rf"{scaling}.*cannot: train with one of these"):
        ssae.load(tmp_path)


@pytest.mark.parametrize("scaling", ["expected_average_only_in", "covariance_whitening"])
def test_a_scale_that_is_not_there_is_refused(scaling: str, tmp_path: Path):
    inference_sae("standard", normalize_activations=scaling).save_model(tmp_path)
    with pytest.raises(ValueError, match=rf"{scaling}.* is not there to fold"):
        ssae.load(tmp_path)


def test_at_the_threshold_a_latent_is_off_in_both(
    same: Callable[..., None], make_sae: Callable[..., Any], tmp_path: Path
):
    # Whole numbers: pre_acts are exact, many equal their threshold, some thresholds are 0.
    ours = make_sae("jumprelu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in ours.state_dict().items():
            low = 0 if name == "threshold" else -2
            weight.copy_(torch.randint(low, 3, weight.shape, generator=generator))
    x = torch.randint(-2, 3, (500, D_IN), generator=generator).float()
    ssae.save(ours, tmp_path, format="saelens")
    sae = theirs(tmp_path)
    pre_acts = ours.pre_acts(x)
    assert (pre_acts == ours.threshold).sum() > 100
    assert torch.equal(ours.encode(x), sae.encode(x))
    assert torch.equal(ours(x).latents.to_dense(), sae.encode(x))
    assert (ours.encode(x) > 0).sum() == ((pre_acts > ours.threshold) & (pre_acts > 0)).sum()


def test_a_threshold_below_zero_keeps_only_positive_latents(
    same: Callable[..., None], tmp_path: Path
):
    sae = inference_sae("jumprelu")
    with torch.no_grad():
        sae.threshold.sub_(1)
    assert (sae.threshold < 0).any()
    sae.save_model(tmp_path)
    same(ssae.load(tmp_path), sae.encode, sae.decode)


def test_an_older_checkpoint_with_log_threshold(same: Callable[..., None], tmp_path: Path):
    sae = training_sae("jumprelu")
    sae.save_model(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["log_threshold"] = weights.pop("threshold").log()
    save_file(weights, tmp_path / "sae_weights.safetensors")
    same(ssae.load(tmp_path), sae.encode, sae.decode)


@pytest.mark.parametrize(
    ("architecture", "flat"),
    [
        ("standard", {"activation_fn_str": "relu", "normalize_activations": "none"}),
        ("standard", {"normalize_activations": False, "expansion_factor": 4, "k": 3}),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
        ("gated", {"architecture": "gated", "apply_b_dec_to_input": False}),
    ],
)
def test_a_folder_from_before_version_6(
    architecture: str, flat: dict[str, Any], same: Callable[..., None], tmp_path: Path
):
    sae = inference_sae(architecture)
    sae.save_model(tmp_path)
    cfg = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu"}
    cfg |= {"hook_point": "blocks.3.hook_resid_post", "model_name": "gpt2-small"}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | flat))
    used = theirs(tmp_path)
    same(ssae.load(tmp_path), used.encode, used.decode)
    metadata = files.read(tmp_path).metadata
    assert metadata["hookpoint"] == "blocks.3.hook_resid_post"
    assert metadata["language_model"] == "gpt2-small"


def test_what_saelens_knows_survives_a_round_trip(tmp_path: Path):
    sae = inference_sae("topk", reshape_activations="hook_z")
    known = {"hook_name": "blocks.2.attn.hook_z", "model_name": "gpt2", "context_size": 128}
    for name, value in known.items():
        setattr(sae.cfg.metadata, name, value)
    sae.save_model(tmp_path / "theirs")
    content = files.read(tmp_path / "theirs")
    files.write(content, tmp_path / "ours", "saelens")
    again = theirs(tmp_path / "ours")
    assert again.cfg.reshape_activations == "hook_z"
    assert all(again.cfg.metadata[name] == value for name, value in known.items())
    heads = torch.randn(5, 3, D_IN // 3)
    assert torch.allclose(again(heads), sae(heads), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_load_as_float32(dtype: str, tmp_path: Path):
    sae = inference_sae("standard", dtype=dtype)
    sae.save_model(tmp_path)
    ours = ssae.load(tmp_path)
    assert ours.W_dec.dtype == torch.float32
    assert torch.equal(ours.W_dec, sae.W_dec.float())


def test_an_architecture_without_counterpart_is_named(tmp_path: Path):
    settings = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_IN, "apply_b_dec_to_input": False}
    transcoder = sae_lens.Transcoder.from_dict(settings | {"architecture": "transcoder"})
    transcoder.save_model(tmp_path)
    with pytest.raises(ValueError, match="must be one of standard, .* it is 'transcoder'"):
        ssae.load(tmp_path)
