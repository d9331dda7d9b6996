"""What a person meets: help, errors of one line with the remedy, and nothing half-written."""

import gzip
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException

from ssae import cli, config
from ssae.explain import explain

Run = Callable[..., str]


@pytest.fixture
def fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs `ssae` in an empty folder and returns its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["ssae", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code not in (0, None)
        lines = capsys.readouterr().err.strip().splitlines()
        message = [line for line in lines if line.startswith("ssae: ")]
        assert len(message) == 1
        assert "Traceback" not in "\n".join(lines)
        done = [path for path in tmp_path.glob("artifacts/*/*") if path.is_dir()]
        assert all((path / "DONE").exists() for path in done if path.suffix != ".partial")
        return message[0]

    return run


@pytest.fixture
def files(corpus_files: dict[str, str], neox_folder: Path) -> dict[str, str]:
    """Overrides of a study on tiny files with a tiny model."""
    return {
        "experiment": "files",
        **{f"corpus.{split}": path for split, path in corpus_files.items()},
        "corpus.min_characters": "1",
        "language_model.name": str(neox_folder),
        "context_length": "32",
        "budget_tokens": "500",
    }


def overrides(values: dict[str, str], **changes: str) -> list[str]:
    renamed = {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in (values | renamed).items()]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_verb_and_every_group(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["ssae", *arguments])
    cli.main()
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.VERBS)
    assert all(folder.name in text for folder in cli.CONF.iterdir() if folder.is_dir())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_of_its_own(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["ssae", verb, "--help"])
    cli.main()
    assert "steered by" in capsys.readouterr().out


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['ssae', '--help']; from ssae.cli import main; main(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unknown_verb_names_the_nearest(fail: Run):
    assert "did you mean `ssae train`" in fail("trian")


def test_an_unknown_override_names_the_nearest_key(fail: Run):
    assert "did you mean sae.k" in fail("train", "sae.kk=3")
    assert "did you mean objective.share" in fail("train", "objective=cvar", "objective.shares=1")
    assert "did you mean training.warmup_steps" in fail("train", "training.warmup=3")
    assert "objective" in fail("train", "objektive=erm")


def test_an_option_that_cannot_be_had_is_not_asked_for_again(fail: Run):
    for plus in ("", "+"):
        message = fail("train", f"{plus}trainer.accumulate_grad_batches=2")
        assert "cannot be had" in message
        assert "training.batch_size_tokens" in message


def test_an_unknown_choice_lists_the_choices(fail: Run):
    message = fail("train", "sae=topkk")
    assert "relu" in message
    assert "topk" in message


def test_a_value_out_of_range_says_the_rule_the_value_and_the_override(fail: Run):
    message = fail("train", "training.decay_share=3")
    assert "[0, 1]" in message
    assert "3" in message
    assert "training.decay_share=0.2" in message


def test_a_missing_value_says_what_to_set(fail: Run):
    assert "set corpus.pool=" in fail("retrieve", "experiment=files")


def test_a_missing_file_is_named(fail: Run, files: dict[str, str]):
    assert "nowhere.jsonl" in fail("retrieve", *overrides(files, corpus__pool="nowhere.jsonl"))


def test_a_malformed_line_is_named_with_its_file_and_number(
    fail: Run, files: dict[str, str], tmp_path: Path
):
    path = tmp_path / "broken.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"text": "fine text"}) + "\n{not json\n")
    message = fail("retrieve", *overrides(files, corpus__pool=str(path)))
    assert "broken.jsonl.gz" in message
    assert "2" in message


def test_seeds_that_are_test_documents_are_refused(fail: Run, files: dict[str, str]):
    message = fail("retrieve", *overrides(files, corpus__seeds=files["corpus.subdomain_test"]))
    assert "corpus.seeds" in message


def test_an_empty_corpus_is_refused(fail: Run, files: dict[str, str]):
    message = fail("retrieve", *overrides(files, corpus__min_characters="100000"))
    assert "corpus.min_characters" in message


def test_a_hookpoint_that_does_not_exist_lists_the_nearest(fail: Run, files: dict[str, str]):
    message = fail("harvest", *overrides(files, hookpoint="gpt_neox.layer.1"))
    assert "gpt_neox.layers.1" in message
    assert "hookpoint=" in message


def test_a_hub_out_of_reach_is_one_line(fail: Run, files: dict[str, str]):
    message = fail("harvest", *overrides(files, language_model__name="nobody/nothing"))
    assert "language_model.name" in message


def test_a_retriever_without_its_package_gives_the_pip_line(
    fail: Run, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install" in fail(
        "retrieve", *overrides(files, retriever__embedder__min_df="1", retriever__embedder__dim="4")
    )


def test_a_context_longer_than_the_model_is_refused(fail: Run, files: dict[str, str]):
    message = fail("harvest", "retriever=random", *overrides(files, context_length="65"))
    assert "context_length=64" in message


def test_numbers_of_what_was_made_have_four_digits(capsys: pytest.CaptureFixture[str]):
    manifest = {"precision": 0.7843137254901961, "seconds": 12.345678, "num_tokens": 1234567}
    cli.print_made(types.SimpleNamespace(path="there", manifest=manifest | {"files": {}}))
    lines = ["there", "  precision: 0.7843", "  seconds: 12.35", "  num_tokens: 1234567"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_artifact_and_says_what_to_set(
    fail: Run, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    def save(file: Path, *_: object, **__: object) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x")

    monkeypatch.setattr("ssae.score.np.save", save)
    message = fail("retrieve", "retriever=random", *overrides(files))
    assert re.search(r"the disk became full while making .*artifacts/score/\w+\.partial: ", message)
    assert "set artifacts=<a folder on a larger disk>" in message
    assert "the same command continues" in message


def test_a_key_that_was_taken_out_is_named(fail: Run):
    assert fail("run", "~logger").startswith("ssae: logger was taken out of the config; set logger")


def test_a_sweeper_that_is_an_extra_says_how_to_get_it():
    error = MissingConfigException(
        "In 'config': Could not find 'hydra/sweeper/optuna'\n\nAvailable options in "
        "'hydra/sweeper':\n\tbasic\nConfig search path:", "hydra/sweeper/optuna"
    )  # fmt: skip
    assert 'pip install -e ".[optuna]"' in explain(error)


@pytest.mark.parametrize("host", ["https://api.wandb.ai", "https://wandb.example.org:8080"])
def test_a_key_of_the_netrc_is_that_of_the_service_in_use(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {host.split('/')[-1]}\n login user\n password {'a1' * 20}\n")
    netrc.chmod(0o600)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_BASE_URL", host)
    assert config.wandb_offline() is False
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example.org")
    assert config.wandb_offline() is True


@pytest.mark.parametrize(("key", "offline"), [("", True), ("planted-key", False)])
def test_wandb_runs_offline_exactly_when_there_is_no_key(
    key: str, offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert config.wandb_offline() is offline


@pytest.mark.slow
def test_the_wheel_works_outside_a_clone(tmp_path: Path):
    root = Path(cli.__file__).parents[1]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, root], capture_output=True, text=True
    )
    if wheel.returncode:
        pytest.skip(f"the build backend cannot be fetched: {wheel.stderr[-200:]}")
    [built] = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", built], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = (
        "import ssae, sys; from ssae.cli import main; from ssae.config import CONF, HERE; "
        f"assert str(CONF).startswith({str(tmp_path)!r}), CONF; "
        "assert (HERE / 'models/docstrings_lm/model.safetensors').exists(); "
        "sys.argv = ['ssae', 'run', '--cfg', 'job']; main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "docstrings_lm" in shown.stdout
