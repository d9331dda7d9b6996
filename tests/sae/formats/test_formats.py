"""What needs no other library: which format a folder holds, and the same function in each."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ssae
from ssae.sae import files
from ssae.sae.formats import FORMATS
from ssae.sae.formats.content import (
    ARCHITECTURES,
    Content,
    build,
    shapes_of,
    weights_of,
    with_subtraction,
    with_unit_decoder,
)
from ssae.sae.residual import ResidualSAE

PLAIN = [architecture for architecture in ARCHITECTURES if architecture != "residual"]
PAIRS = [(n, held) for n, module in FORMATS.items() for held in module.HOLDS if held in PLAIN]


def content_of(sae: Any) -> Content:
    return Content(sae.architecture, sae.hyperparameters, weights_of(sae), {})


def gemma(x: Tensor, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Gemma Scope's own equations, in float64."""
    params = {name: value.double() for name, value in params.items()}
    pre_acts = x.double() @ params["W_enc"] + params["b_enc"]
    latents = pre_acts.relu() * (pre_acts > params["threshold"])
    return latents, latents @ params["W_dec"] + params["b_dec"]


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_every_format_gives_the_same_latents_back(
    name: str,
    architecture: str,
    subtract_b_dec: bool,
    make_sae: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
):
    sae = make_sae(architecture, subtract_b_dec=subtract_b_dec)
    ssae.save(sae, tmp_path, {"hookpoint": "layers.1", "note": "x"}, format=name)
    assert files.detect(tmp_path) == name
    assert {path.name for path in tmp_path.iterdir()} <= set(FORMATS[name].FILES)
    loaded = ssae.load(tmp_path)
    same(loaded, sae.encode, sae.decode)
    same(ssae.load(tmp_path, format=name), sae.encode, sae.decode)
    assert not loaded.training
    metadata = files.read(tmp_path).metadata
    assert metadata["hookpoint"] == "layers.1"
    assert metadata["note"] == "x"


@pytest.mark.parametrize("architecture", PLAIN)
def test_on_disk_the_encoder_is_w_enc(
    architecture: str, make_sae: Callable[..., Any], tmp_path: Path
):
    sae = make_sae(architecture)
    weights = weights_of(sae)
    assert {name: tuple(value.shape) for name, value in weights.items()} == shapes_of(sae)
    assert weights["W_enc"].shape == (sae.d_in, sae.d_sae)
    assert torch.equal(weights["W_enc"], sae.W_enc)
    assert all(value.is_contiguous() for value in weights.values())


@pytest.mark.parametrize("frozen", PLAIN)
@pytest.mark.parametrize("extra", ["topk", "jumprelu"])
def test_two_saes_in_one_come_back(
    frozen: str,
    extra: str,
    make_sae: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
):
    sae = ResidualSAE(make_sae(frozen), make_sae(extra, seed=4, d_sae=30)).eval()
    ssae.save(sae, tmp_path)
    weights = load_file(tmp_path / "sae.safetensors")
    assert weights["generalist.W_enc"].shape == (sae.d_in, 90)
    assert weights["extra.W_enc"].shape == (sae.d_in, 30)
    loaded = ssae.load(tmp_path)
    same(loaded, sae.encode, sae.decode)
    assert loaded.hyperparameters == sae.hyperparameters
    twice = ResidualSAE(loaded, make_sae("relu", seed=5)).eval()
    ssae.save(twice, tmp_path)
    same(ssae.load(tmp_path), twice.encode, twice.decode)
    for name in FORMATS:
        if name != "ssae":
            with pytest.raises(ValueError, match="not residual; use one of ssae"):
                ssae.save(sae, tmp_path / "other", format=name)


def test_saes_nested_without_end_are_refused(make_sae: Callable[..., Any], tmp_path: Path):
    ssae.save(make_sae("topk"), tmp_path)
    said = json.loads((tmp_path / "sae.json").read_text())
    part = {"architecture": "topk", "hyperparameters": said["hyperparameters"]}
    for _ in range(200):
        both = {"generalist": part, "extra": part}
        part = {"architecture": "residual", "hyperparameters": both}
        if len(json.dumps(part)) > 50_000:
            break
    (tmp_path / "sae.json").write_text(json.dumps(part))
    with pytest.raises(ValueError, match="describe"):
        ssae.load(tmp_path)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_gemma_scope_is_written_by_its_own_equations(
    architecture: str, subtract_b_dec: bool, make_sae: Callable[..., Any], x: Tensor, tmp_path: Path
):
    sae = make_sae(architecture, subtract_b_dec=subtract_b_dec)
    ssae.save(sae, tmp_path, format="gemma_scope")
    with np.load(tmp_path / "params.npz") as found:
        params = {name: torch.from_numpy(found[name]) for name in found.files}
    assert set(params) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    assert all(value.dtype == torch.float32 for value in params.values())
    latents, recon = gemma(x, params)
    assert (sae.encode(x) - latents).abs().max() < 1e-5
    assert (sae(x).recon - recon).abs().max() < 1e-5


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_gemma_scope_is_read_by_its_own_equations(
    dtype: str, order: str, compressed: bool, x: Tensor, tmp_path: Path
):
    generator = np.random.default_rng(0)
    d_in, d_sae = x.shape[1], 90
    shapes = {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": d_sae, "b_dec": d_in,
        "threshold": d_sae,
    }  # fmt: skip
    arrays = {
        name: np.asarray(generator.normal(size=shape), dtype=dtype, order=order)
        for name, shape in shapes.items()
    }
    (np.savez_compressed if compressed else np.savez)(tmp_path / "params.npz", **arrays)
    sae = ssae.load(tmp_path)
    assert (sae.architecture, sae.subtract_b_dec) == ("jumprelu", False)
    params = {name: torch.from_numpy(a.astype("f4")) for name, a in arrays.items()}
    latents, recon = gemma(x, params)
    assert (sae.encode(x) - latents).abs().max() < 2e-5
    assert (sae(x).recon - recon).abs().max() < 2e-4  # latents of about 60


@pytest.mark.parametrize("architecture", PLAIN)
def test_where_b_dec_is_subtracted_does_not_matter(
    architecture: str, make_sae: Callable[..., Any], same: Callable[..., None]
):
    sae = make_sae(architecture)
    moved = with_subtraction(content_of(sae), False)
    same(build(moved, "moved"), sae.encode, sae.decode)
    back = with_subtraction(moved, True)
    for name, weight in weights_of(sae).items():
        assert torch.allclose(back.weights[name], weight, atol=1e-6)


def test_large_means_cancel_in_float64(make_sae: Callable[..., Any], x: Tensor):
    # Residual streams have coordinates of several hundred: in float32 the fold would lose digits.
    sae = make_sae("jumprelu")
    with torch.no_grad():
        sae.b_dec[::3].add_(700)
        sae.b_enc.copy_(sae.b_dec @ sae.W_enc)
    moved = with_subtraction(content_of(sae), False)
    exact = sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()
    assert (moved.weights["b_enc"] - exact).abs().max() < 1e-6


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_decoder_norms_move_into_the_latents(
    architecture: str, make_sae: Callable[..., Any], x: Tensor
):
    sae = make_sae(architecture)
    unit = build(with_unit_decoder(content_of(sae)), "unit")
    norms = sae.W_dec.norm(dim=1)
    assert torch.allclose(unit.W_dec.norm(dim=1), torch.ones(sae.d_sae))
    assert torch.allclose(unit.encode(x), sae.encode(x) * norms, atol=1e-5)
    assert torch.allclose(unit(x).recon, sae(x).recon, atol=1e-5)


def test_a_folder_without_an_sae_says_what_is_there_and_what_is_needed(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no SAE, only nothing"):
        ssae.load(tmp_path)
    (tmp_path / "model.bin").touch()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"only config\.json, model\.bin\. A format needs"
    ) as error:
        ssae.load(tmp_path)
    for name, module in FORMATS.items():
        assert f"{name}: {module.NEEDS}" in str(error.value)


def test_two_formats_in_a_folder_are_ambiguous(make_sae: Callable[..., Any], tmp_path: Path):
    ssae.save(make_sae("topk"), tmp_path, format="ssae")
    with pytest.raises(ValueError, match="holds an SAE in the format ssae; write gemma_scope into"):
        ssae.save(make_sae("jumprelu"), tmp_path, format="gemma_scope")
    ssae.save(make_sae("jumprelu"), tmp_path / "other", format="gemma_scope")
    (tmp_path / "other/params.npz").rename(tmp_path / "params.npz")
    with pytest.raises(ValueError, match="as ssae and as gemma_scope; say format=ssae"):
        ssae.load(tmp_path)
    assert ssae.load(tmp_path, format="gemma_scope").architecture == "jumprelu"
    assert ssae.load(tmp_path, format="ssae").architecture == "topk"


def test_cfg_json_is_told_apart_by_its_keys(make_sae: Callable[..., Any], tmp_path: Path):
    for name in ("saelens", "sparsify"):
        ssae.save(make_sae("topk"), tmp_path / name, format=name)
        assert files.detect(tmp_path / name) == name
    # Weights of the other: named by what cfg.json says, not by what lies beside it.
    (tmp_path / "saelens/sae_weights.safetensors").rename(tmp_path / "saelens/sae.safetensors")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors: there is no such file"):
        ssae.load(tmp_path / "saelens")


def test_a_parent_folder_names_where_saes_are(make_sae: Callable[..., Any], tmp_path: Path):
    ssae.save(make_sae("jumprelu"), tmp_path / "layer_1/width_16k/average_l0_80", format="saelens")
    with pytest.raises(ValueError, match=r"SAEs in layer_1/width_16k/average_l0_80; give"):
        ssae.load(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_an_architecture_that_a_format_cannot_hold_names_those_that_can(
    name: str, make_sae: Callable[..., Any], tmp_path: Path
):
    for architecture in PLAIN:
        if architecture in FORMATS[name].HOLDS:
            continue
        able = [other for other, module in FORMATS.items() if architecture in module.HOLDS]
        with pytest.raises(ValueError, match=f"not {architecture}; use one of {', '.join(able)}"):
            ssae.save(make_sae(architecture), tmp_path / "sae", format=name)
        assert not (tmp_path / "sae").exists()


def test_an_unknown_format_lists_the_known(make_sae: Callable[..., Any], tmp_path: Path):
    with pytest.raises(ValueError, match="must be one of ssae, saelens, .*got 'onnx'"):
        ssae.save(make_sae("topk"), tmp_path / "sae", format="onnx")
    with pytest.raises(ValueError, match="must be one of ssae, saelens, .*got 'onnx'"):
        ssae.load(tmp_path, format="onnx")


@pytest.mark.parametrize("name", FORMATS)
def test_an_interrupted_save_leaves_the_old_sae(
    name: str, make_sae: Callable[..., Any], same: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    architecture = FORMATS[name].HOLDS[0] if name != "ssae" else "topk"
    old = make_sae(architecture)
    ssae.save(old, tmp_path, format=name)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ssae.save(make_sae(architecture, seed=5), tmp_path, format=name)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} <= set(FORMATS[name].FILES)
    same(ssae.load(tmp_path), old.encode, old.decode)


def test_the_identity_is_the_content_not_the_metadata(make_sae: Callable[..., Any], tmp_path: Path):
    for name in FORMATS:
        architecture = "topk" if name in ("ssae", "sparsify") else "jumprelu"
        sae = make_sae(architecture)
        for folder in ("first", "second"):
            ssae.save(sae, tmp_path / folder / name, format=name)
        ssae.save(make_sae(architecture, seed=3), tmp_path / "other" / name, format=name)
        identities = [files.identity(tmp_path / f / name) for f in ("first", "second", "other")]
        assert identities[0] == identities[1] != identities[2]
        json.dumps(identities)
    ssae.save(make_sae("topk"), tmp_path / "third", {"arm": "x"})
    assert files.identity(tmp_path / "third") == files.identity(tmp_path / "first/ssae")


def test_metadata_too_long_for_a_zip_comment_are_left_out(
    make_sae: Callable[..., Any], tmp_path: Path
):
    ssae.save(make_sae("jumprelu"), tmp_path, {"note": "x" * 70_000}, format="gemma_scope")
    assert files.read(tmp_path).metadata == {}
    with zipfile.ZipFile(tmp_path / "params.npz") as archive:
        assert archive.testzip() is None
