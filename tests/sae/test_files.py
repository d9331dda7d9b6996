import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ssae
from ssae.sae import files
from ssae.sae.formats import native
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE


def make_topk(seed: int = 0, d_sae: int = 12) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(5, d_sae, k=3, auxk_coefficient=0.1, k_aux=4)
    with torch.no_grad():
        sae.b_enc.normal_()
        sae.b_dec.normal_()
    return sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ssae.save(make_topk(), tmp_path / "sae", {"hookpoint": "layers.1"})
    return tmp_path / "sae"


def edit(folder: Path, **changes) -> None:
    description = json.loads((folder / "sae.json").read_text())
    (folder / "sae.json").write_text(json.dumps(description | changes))


@pytest.mark.parametrize(
    "sae",
    [make_topk(), ReLUSAE(5, 12, l1_coefficient=2.5, auxk_coefficient=0.1, k_aux=4)],
    ids=["topk", "relu"],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, sae):
    ssae.save(sae, tmp_path / "a" / "b")
    loaded = ssae.load(tmp_path / "a" / "b")
    assert type(loaded) is type(sae)
    assert loaded.hyperparameters == sae.hyperparameters
    assert not loaded.training
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    for name, weight in sae.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    x = torch.randn(7, 5)
    assert torch.equal(loaded(x).recon, sae(x).recon)


def test_the_metadata_are_in_the_description(folder):
    assert files.load_description(folder)["metadata"] == {"hookpoint": "layers.1"}


def test_loading_leaves_the_global_generator_alone(folder):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    ssae.load(folder)
    assert torch.equal(torch.rand(4), expected)


def test_a_missing_description_or_weights_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        ssae.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must be the folder of an SAE, it is a file"):
        ssae.load(folder / "sae.json")
    (folder / "sae.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*sae\.safetensors"):
        ssae.load(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json", b"[1, 2]", b"null", b'"topk"', b"\xff\xfe\x00", b"[" * 100_000],
    ids=["empty", "open", "words", "list", "null", "string", "binary", "deep"],
)
def test_a_description_that_is_no_json_object_is_refused(folder, content):
    (folder / "sae.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"sae\.json"):
        ssae.load(folder)


@pytest.mark.parametrize("architecture", ["jumpreelu", None, 3, ["topk"], {"topk": 1}, "__class__"])
def test_an_unknown_architecture_is_refused_by_name(folder, architecture):
    edit(folder, architecture=architecture)
    with pytest.raises(ValueError, match="names architecture .*; known: topk, relu, gated"):
        ssae.load(folder)


@pytest.mark.parametrize(
    "hyperparameters",
    [
        None,
        [5, 12],
        {},
        {"d_in": 5, "d_sae": 12, "k": 3, "auxk_coefficient": 0.1},
        {"d_in": 5, "d_sae": 12, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4, "more": 1},
        {"d_in": "5", "d_sae": 12, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4},
        {"d_in": 5, "d_sae": 12.5, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4},
        {"d_in": 5, "d_sae": 12, "k": 13, "auxk_coefficient": 0.1, "k_aux": 4},
        {"d_in": 5, "d_sae": -12, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4},
        {"d_in": 5, "d_sae": 10**15, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4},
        {"d_in": 5, "d_sae": 13, "k": 3, "auxk_coefficient": 0.1, "k_aux": 4},
    ],
    ids=["null", "list", "empty", "missing", "extra", "string", "fraction", "k", "negative",
         "huge", "other width"],
)  # fmt: skip
def test_hyperparameters_that_do_not_fit_are_refused(folder, hyperparameters):
    edit(folder, hyperparameters=hyperparameters)
    with pytest.raises(ValueError, match=r"sae\.json|k must lie|must be a whole"):
        ssae.load(folder)


def test_a_description_without_hyperparameters_is_refused(folder):
    (folder / "sae.json").write_text('{"architecture": "topk"}')
    with pytest.raises(ValueError, match="does not describe an SAE"):
        ssae.load(folder)


def test_weights_that_do_not_fit_the_description_are_refused(folder):
    weights = load_file(folder / "sae.safetensors")
    for damaged in (
        weights | {"W_enc": weights["W_enc"].T.contiguous()},
        weights | {"b_dec": weights["b_dec"][:1]},  # would broadcast
        weights | {"extra": torch.zeros(1)},
        {name: weight for name, weight in weights.items() if name != "b_enc"},
        {},
    ):
        save_file(damaged, folder / "sae.safetensors")
        with pytest.raises(ValueError, match=r"weights that sae\.json describes"):
            ssae.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, name, value):
    weights = load_file(folder / "sae.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "sae.safetensors")
    with pytest.raises(ValueError, match=f"{name} holds non-finite values"):
        ssae.load(folder)


def test_weights_cut_short_anywhere_are_refused(folder):
    content = (folder / "sae.safetensors").read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        (folder / "sae.safetensors").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cannot read .*sae\.safetensors"):
            ssae.load(folder)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [pickle.dumps, None], ids=["pickle", "torch"])
def test_a_pickle_under_the_name_of_the_weights_is_refused_and_not_executed(folder, tmp_path, dump):
    fired = tmp_path / "fired"
    if dump is None:
        torch.save({"W_enc": Bomb(fired)}, folder / "sae.safetensors")
    else:
        (folder / "sae.safetensors").write_bytes(dump(Bomb(fired)))
        pickle.loads((folder / "sae.safetensors").read_bytes())  # the bomb is live
        assert fired.exists()
        fired.unlink()
    with pytest.raises(ValueError, match="cannot read"):
        ssae.load(folder)
    assert not fired.exists()


@pytest.mark.parametrize("where", ["weights", "description", "metadata"])
def test_an_interrupted_save_leaves_the_old_sae_loadable(folder, monkeypatch, where):
    old = ssae.load(folder)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    metadata: dict = {}
    if where == "weights":
        monkeypatch.setattr(native, "write_tensors", interrupted)
    elif where == "description":
        monkeypatch.setattr(Path, "write_text", interrupted)
    else:
        metadata["path"] = Path()  # not JSON
    with pytest.raises((KeyboardInterrupt, TypeError)):
        ssae.save(make_topk(seed=1, d_sae=14), folder, metadata)
    monkeypatch.undo()
    again = ssae.load(folder)
    assert again.hyperparameters == old.hyperparameters
    for name, weight in old.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_saving_again_replaces_and_leaves_nothing_else_behind(folder, tmp_path):
    ssae.save(make_topk(seed=1, d_sae=14), folder)
    assert ssae.load(folder).d_sae == 14
    assert sorted(path.name for path in folder.iterdir()) == ["sae.json", "sae.safetensors"]
    shutil.copytree(folder, tmp_path / "copy")
    assert ssae.load(str(tmp_path / "copy")).d_sae == 14


def test_weights_saved_in_bfloat16_load_as_float32_of_the_same_values(folder):
    sae = make_topk().bfloat16()
    ssae.save(sae, folder)
    loaded = ssae.load(folder)
    assert loaded.W_dec.dtype == torch.float32
    assert torch.equal(loaded.W_dec, sae.W_dec.float())
