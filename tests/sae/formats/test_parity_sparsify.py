"""Weights that sparsify wrote give its latents and reconstructions here, and the reverse."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ssae
from ssae.sae import files

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sparsify = pytest.importorskip("sparsify", reason="needs the extra peers: pip install .[peers]")

D_IN, D_SAE, K = 24, 96, 7


def random_coder(seed: int = 0, **changes: Any) -> Any:
    config = sparsify.SparseCoderConfig(**({"num_latents": D_SAE, "k": K} | changes))
    coder = sparsify.SparseCoder(D_IN, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in coder.parameters():
            weight.normal_(generator=generator)
            if weight.dim() == 2:
                weight.div_(D_IN**0.5)
    return coder


def dense(coder: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return its encode and decode on dense latents."""

    def encode(x: Tensor) -> Tensor:
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)

    def decode(latents: Tensor) -> Tensor:
        return coder.decode(*latents.topk(coder.cfg.k, sorted=False))

    return encode, decode


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_latents": 0, "expansion_factor": 3},
        {"normalize_decoder": False},  # says how it was trained
    ],
)
def test_a_coder_of_theirs_is_the_same_here(
    changes: dict[str, Any], same: Callable[..., None], x: Tensor, tmp_path: Path
):
    coder = random_coder(**changes)
    coder.save_to_disk(tmp_path / "layers.10")
    ours = ssae.load(tmp_path / "layers.10")
    assert (ours.architecture, ours.subtract_b_dec) == ("topk", True)
    same(ours, *dense(coder))
    with torch.no_grad():
        assert torch.allclose(ours(x).recon, coder(x).sae_out, atol=1e-5)
    assert files.read(tmp_path / "layers.10").metadata == {"hookpoint": "layers.10"}


@pytest.mark.parametrize("subtract_b_dec", [True, False])
def test_an_sae_of_ours_is_the_same_there(
    subtract_b_dec: bool, make_sae: Callable[..., Any], same: Callable[..., None], tmp_path: Path
):
    ours = make_sae("topk", subtract_b_dec=subtract_b_dec)
    ssae.save(ours, tmp_path, {"hookpoint": "layers.3"}, format="sparsify")
    coder = sparsify.SparseCoder.load_from_disk(tmp_path)
    same(ours, *dense(coder))
    same(ssae.load(tmp_path), *dense(coder))
    assert files.read(tmp_path).metadata == {"hookpoint": "layers.3"}


def test_a_root_lists_its_hookpoints(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    for hookpoint in ("layers.0", "layers.1", "layers.1.mlp"):
        random_coder().save_to_disk(tmp_path / hookpoint)
    listed = r"holds SAEs in layers\.0, layers\.1, layers\.1\.mlp; give the folder of one of them"
    with pytest.raises(ValueError, match=listed):
        ssae.load(tmp_path)


@pytest.mark.parametrize("option", ["skip_connection", "transcode", "multi_topk"])
def test_an_option_without_counterpart_is_refused_by_name(option: str, tmp_path: Path):
    random_coder(**{option: True}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=f"{option} has no counterpart here"):
        ssae.load(tmp_path)


def test_another_activation_is_refused_by_name(tmp_path: Path):
    random_coder(activation="groupmax", k=8).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="must be topk, it is 'groupmax'"):
        ssae.load(tmp_path)


def test_signed_latents_of_older_versions_are_refused_by_name(tmp_path: Path):
    random_coder().save_to_disk(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"signed": True}))
    with pytest.raises(ValueError, match="signed has no counterpart here"):
        ssae.load(tmp_path)
