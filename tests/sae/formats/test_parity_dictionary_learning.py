"""Weights that dictionary_learning wrote give its latents and recons here, and the reverse."""

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

import ssae
from ssae.sae import files

if importlib.util.find_spec("dictionary_learning") is None:
    reason = "needs pip install --no-deps dictionary-learning"
    pytest.skip(reason, allow_module_level=True)

D_IN, D_SAE, K = 24, 90, 7
GROUPS = [10, 30, 50]
CLASSES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "GatedAutoEncoder": "gated",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "JumpReluAutoEncoder": "jumprelu",
}


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """Its classes, loader and trainers. It imports two packages that it does not need for these."""
    absent = [name for name in ("nnsight", "zstandard") if importlib.util.find_spec(name) is None]
    for name in absent:
        sys.modules[name] = MagicMock()
    try:
        modules = ["dictionary", "utils", "training", "trainers.standard", "trainers.gdm"]
        modules += ["trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k"]
        modules += ["trainers.jumprelu"]
        found: dict[str, Any] = {}
        for module in modules:
            found |= vars(importlib.import_module(f"dictionary_learning.{module}"))
        yield SimpleNamespace(**found)
    finally:
        for name in absent:
            del sys.modules[name]


def fill(ae: Any) -> Any:
    """Give every weight a random value of realistic size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in ae.state_dict().items():
            if not weight.is_floating_point():
                continue
            if name == "threshold" and not weight.dim():
                weight.fill_(1.7)
                continue
            weight.normal_(generator=generator)
            if weight.dim() == 2:
                weight.div_(D_IN**0.5)
            elif name == "threshold":
                weight.abs_().add_(0.2)
            elif name == "r_mag":
                weight.mul_(0.3)
    return ae


def random_ae(theirs: Any, dict_class: str) -> Any:
    arguments: list[Any] = [D_IN, D_SAE]
    if CLASSES[dict_class] in ("topk", "batchtopk", "matryoshka"):
        arguments.append(K)
    if CLASSES[dict_class] == "matryoshka":
        arguments.append(GROUPS)
    return fill(getattr(theirs, dict_class)(*arguments))


def save(ae: Any, folder: Path, dict_class: str, /, **trainer: Any) -> Path:
    """Write what its training loop writes at the end."""
    folder.mkdir(exist_ok=True)
    known = {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE}
    known |= {"k": K} if hasattr(ae, "k") else {}
    known |= {"lm_name": "EleutherAI/pythia-70m", "layer": 3, "submodule_name": "resid_post_3"}
    (folder / "config.json").write_text(json.dumps({"trainer": known | trainer, "buffer": {}}))
    torch.save({name: w.cpu() for name, w in ae.state_dict().items()}, folder / "ae.pt")
    return folder


@pytest.mark.parametrize("dict_class", CLASSES)
def test_an_autoencoder_of_theirs_is_the_same_here(
    dict_class: str, theirs: Any, same: Callable[..., None], tmp_path: Path
):
    ae = random_ae(theirs, dict_class)
    folder = save(ae, tmp_path / "trainer_0", dict_class)
    ours = ssae.load(folder)
    assert ours.architecture == CLASSES[dict_class]
    same(ours, ae.encode, ae.decode)
    assert files.read(folder).metadata["language_model"] == "EleutherAI/pythia-70m"
    if "k" in ours.hyperparameters:
        assert ours.hyperparameters["k"] == K
    if dict_class == "MatryoshkaBatchTopKSAE":
        assert ours.hyperparameters["group_sizes"] == GROUPS


@pytest.mark.parametrize("subtract_b_dec", [True, False])
@pytest.mark.parametrize("architecture", files.FORMATS["dictionary_learning"].HOLDS)
def test_an_sae_of_ours_is_the_same_there(
    architecture: str,
    subtract_b_dec: bool,
    theirs: Any,
    make_sae: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
):
    ours = make_sae(architecture, subtract_b_dec=subtract_b_dec)
    metadata = {"hookpoint": "gpt_neox.layers.3", "language_model": "EleutherAI/pythia-70m"}
    ssae.save(ours, tmp_path, metadata, format="dictionary_learning")
    same(ssae.load(tmp_path), ours.encode, ours.decode)
    assert files.read(tmp_path).metadata == metadata
    ae, config = theirs.load_dictionary(str(tmp_path), "cpu")
    assert config["trainer"]["layer"] == 3
    assert config["trainer"]["lm_name"] == "EleutherAI/pythia-70m"
    assert CLASSES[type(ae).__name__] == architecture
    if type(ae).__name__ == "AutoEncoder":  # its loader scales the decoder to norm 1
        raw = type(ae).from_pretrained(tmp_path / "ae.pt", normalize_decoder=False)
        same(ours, raw.encode, raw.decode)
        x = torch.randn(50, D_IN)
        assert torch.allclose(ae(x), ours(x).recon, atol=1e-5)
    else:
        same(ours, ae.encode, ae.decode)


@pytest.mark.parametrize("normalize_activations", [False, True])
def test_what_its_trainers_leave_behind(
    normalize_activations: bool, theirs: Any, same: Callable[..., None], x: Tensor, tmp_path: Path
):
    torch.manual_seed(0)
    common = {
        "steps": 12, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": "pythia",
        "device": "cpu", "warmup_steps": 2, "lr": 1e-2, "seed": 0,
    }  # fmt: skip
    top_k = {"k": K, "threshold_start_step": 2}
    trainers = {
        theirs.TopKTrainer: top_k,
        theirs.BatchTopKTrainer: top_k,
        theirs.MatryoshkaBatchTopKTrainer: top_k | {"group_fractions": [0.25, 0.75]},
        theirs.StandardTrainer: {"sparsity_warmup_steps": 2},
        theirs.GatedSAETrainer: {"sparsity_warmup_steps": 2},
        theirs.JumpReluTrainer: {"sparsity_warmup_steps": 2},
    }
    theirs.trainSAE(
        data=[x.clone() for _ in range(12)],
        trainer_configs=[{"trainer": t} | common | own for t, own in trainers.items()],
        steps=12,
        save_dir=str(tmp_path),
        save_steps=[5],
        normalize_activations=normalize_activations,
        device="cpu",
    )
    for i in range(len(trainers)):
        folder = tmp_path / f"trainer_{i}"
        ae, config = theirs.load_dictionary(str(folder), "cpu")
        ours = ssae.load(folder)
        assert ours.architecture == CLASSES[config["trainer"]["dict_class"]]
        same(ours, ae.encode, ae.decode)
    with pytest.raises(ValueError, match=r"holds SAEs in trainer_0, .*give the folder of one"):
        ssae.load(tmp_path)


@pytest.mark.parametrize("dict_class", ["AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"])
def test_a_threshold_that_was_never_set(
    dict_class: str, theirs: Any, same: Callable[..., None], tmp_path: Path
):
    ae = random_ae(theirs, dict_class)
    with torch.no_grad():
        ae.threshold.fill_(-1)
    same(ssae.load(save(ae, tmp_path / "ae", dict_class)), ae.encode, ae.decode)


def test_a_file_of_before_thresholds(theirs: Any, same: Callable[..., None], tmp_path: Path):
    ae = random_ae(theirs, "AutoEncoderTopK")
    folder = save(ae, tmp_path / "ae", "AutoEncoderTopK")
    weights = torch.load(folder / "ae.pt", weights_only=True)
    del weights["threshold"], weights["k"]
    torch.save(weights, folder / "ae.pt")
    same(ssae.load(folder), ae.encode, ae.decode)


def test_the_backup_of_a_run_in_progress_is_named(theirs: Any, tmp_path: Path):
    ae = random_ae(theirs, "AutoEncoder")
    folder = save(ae, tmp_path / "ae", "AutoEncoder")
    optimizer = torch.optim.Adam(ae.parameters())
    ae(torch.randn(3, D_IN)).sum().backward()
    optimizer.step()
    backup = {"step": 5, "ae": ae.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(backup | {"config": {}, "norm_factor": 1.5}, folder / "ae.pt")
    with pytest.raises(ValueError, match=r"backup of a run in progress .*take\s+ae\.pt when"):
        ssae.load(folder)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "IdentityDict"}, "dict_class must be one of AutoEncoder, .*'IdentityDict'"),
        ({"k": K + 1}, r"k must be the one number of config\.json, 8"),
        ({"dict_size": D_SAE - 1}, r"weights that config\.json describes"),
        ({"activation_dim": None}, "activation_dim must be a whole number"),
        ({"dict_class": "MatryoshkaBatchTopKSAE"}, "group_sizes must be positive"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    trainer: dict[str, Any], message: str, theirs: Any, tmp_path: Path
):
    folder = save(random_ae(theirs, "BatchTopKSAE"), tmp_path / "ae", "BatchTopKSAE", **trainer)
    with pytest.raises(ValueError, match=message):
        ssae.load(folder)


def test_a_folder_without_config_says_what_is_missing(theirs: Any, tmp_path: Path):
    folder = save(random_ae(theirs, "AutoEncoder"), tmp_path / "ae", "AutoEncoder")
    shutil.move(folder / "config.json", folder / "other.json")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json: there is no such file"):
        ssae.load(folder)
