"""ssae export: what it writes, what it refuses to overwrite, and what it says."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import ssae
from ssae import cli, export
from ssae.sae import files
from ssae.sae.formats import FORMATS
from ssae.sae.formats.content import ARCHITECTURES, with_training_defaults
from ssae.study import Export

HELD = [(name, held) for name, m in FORMATS.items() for held in m.HOLDS if held != "residual"]


def random_sae(architecture: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    own = {"topk": {"k": 4}, "batchtopk": {"k": 4}, "matryoshka": {"k": 4, "group_sizes": [9, 31]}}
    known = {"d_in": 12, "d_sae": 40, "subtract_b_dec": True} | own.get(architecture, {}) | changes
    sae = ARCHITECTURES[architecture](**with_training_defaults(architecture, known)).eval()
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):
            bias.normal_()
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.7)
    return sae


@pytest.fixture
def study(make_study: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes a study whose export is as said."""

    def make(**changes: Any) -> Any:
        settings = {"sae": None, "format": "saelens", "path": str(tmp_path / "out")}
        return make_study(tmp_path, export=Export(**(settings | changes)))

    return make


@pytest.mark.parametrize(("format", "architecture"), HELD)
def test_a_saved_sae_in_every_format(
    format: str, architecture: str, study: Callable[..., Any], tmp_path: Path
):
    sae = random_sae(architecture)
    ssae.save(sae, tmp_path / "sae", {"hookpoint": "layers.1", "language_model": "m"})
    made = export.export(study(sae=str(tmp_path / "sae"), format=format))
    assert made.path == tmp_path / "out"
    assert made.manifest["architecture"].startswith(architecture)
    assert "in latents" in made.manifest["checked"]
    x = torch.randn(30, 12) * 3
    loaded = ssae.load(tmp_path / "out")
    assert torch.allclose(loaded(x).recon, sae(x).recon, atol=1e-5)
    metadata = files.read(tmp_path / "out").metadata
    assert metadata["hookpoint"] == "layers.1"
    assert metadata["exported_from"] == str(tmp_path / "sae")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "sae"]


def test_the_trained_sae_of_an_arm(study: Callable[..., Any], tmp_path: Path):
    made = export.export(study(format="sparsify"))
    trained = Path(made.manifest["from"])
    assert trained.parent == tmp_path / "artifacts/train"
    x = torch.randn(20, 16)
    assert torch.allclose(ssae.load(made.path)(x).recon, ssae.load(trained)(x).recon, atol=1e-5)
    assert files.read(made.path).metadata["arm"] == "second"


def test_from_one_format_to_another_and_back(study: Callable[..., Any], tmp_path: Path):
    sae = random_sae("jumprelu", subtract_b_dec=False)
    ssae.save(sae, tmp_path / "0", format="gemma_scope")
    for i, format in enumerate(("saelens", "dictionary_learning", "ssae", "gemma_scope")):
        path = str(tmp_path / str(i + 1))
        export.export(study(sae=str(tmp_path / str(i)), format=format, path=path))
    assert (tmp_path / "4/params.npz").is_file()
    for name, weight in ssae.load(tmp_path / "4").state_dict().items():
        assert torch.equal(weight, sae.state_dict()[name])


def test_an_architecture_that_does_not_fit_writes_nothing(
    study: Callable[..., Any], tmp_path: Path
):
    ssae.save(random_sae("gated"), tmp_path / "sae")
    with pytest.raises(ValueError, match=r"not gated; use one of ssae, saelens, dictionary"):
        export.export(study(sae=str(tmp_path / "sae"), format="sparsify"))
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_an_earlier_export_is_replaced_in_any_format(study: Callable[..., Any], tmp_path: Path):
    for seed, format in enumerate(FORMATS):
        architecture = "topk" if format == "sparsify" else "jumprelu"
        sae = random_sae(architecture, seed)
        ssae.save(sae, tmp_path / f"sae{seed}")
        export.export(study(sae=str(tmp_path / f"sae{seed}"), format=format))
        assert files.detect(tmp_path / "out") == format
        x = torch.randn(30, 12)
        assert torch.allclose(ssae.load(tmp_path / "out")(x).recon, sae(x).recon, atol=1e-5)


def test_anything_else_is_never_overwritten(study: Callable[..., Any], tmp_path: Path):
    ssae.save(random_sae("topk"), tmp_path / "sae")
    out = tmp_path / "out"
    out.mkdir()
    exporting = study(sae=str(tmp_path / "sae"))
    export.export(exporting)  # an empty folder is free
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else: choose another or remove it"):
        export.export(exporting)
    assert (out / "notes.txt").read_text() == "mine"
    for sae_of_others in ("saelens", "gemma_scope", "ssae"):
        path = tmp_path / sae_of_others
        ssae.save(random_sae("jumprelu"), path, format=sae_of_others)
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        with pytest.raises(ValueError, match="holds something else"):
            export.export(study(sae=str(tmp_path / "sae"), path=str(path)))
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    with pytest.raises(ValueError, match="holds something else"):
        export.export(study(sae=str(tmp_path / "sae"), path=str(out / "notes.txt")))


def test_what_is_written_is_checked_before_it_gets_its_name(
    study: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ssae.save(random_sae("topk"), tmp_path / "sae")

    def write_wrongly(content: Any, folder: Path, format: str) -> None:
        weights = content.weights | {"b_dec": content.weights["b_dec"] + 0.01}
        files.write(content._replace(weights=weights), folder, format)

    monkeypatch.setattr(export, "write", write_wrongly)
    with pytest.raises(ValueError, match="must compute what its source does"):
        export.export(study(sae=str(tmp_path / "sae")))
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_folder_must_be_named(study: Callable[..., Any]):
    with pytest.raises(ValueError, match=r"set export\.path=my_sae"):
        export.export(study(path=None))
    with pytest.raises(ValueError, match=r"export\.format must be one of ssae, saelens"):
        study(format="onnx")


def test_the_verb_says_where_and_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    ssae.save(random_sae("batchtopk"), "sae")
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["ssae", "export", "export.sae=sae", "export.path=out"])
    cli.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "out"
    assert "  wrote: cfg.json, sae_weights.safetensors" in lines
    assert "  architecture: batchtopk as jumprelu" in lines
    assert any(line.startswith("  checked: loaded again, it differs by") for line in lines)
    assert json.loads((tmp_path / "out/cfg.json").read_text())["architecture"] == "jumprelu"
