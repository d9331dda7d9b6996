"""`ssae report`: the words of its line, the page of several folders, and its run of W&B."""

import csv
import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from ssae import cli
from ssae.sweep.jobs import read_jobs
from ssae.sweep.report import parse, report
from ssae.sweep.setting import settings_of, spell_settings
from tests.sweep.conftest import ARMS
from tests.training.wandb_service import records

Write = Callable[..., Path]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def sweep(write_job: Write, tmp_path: Path) -> Path:
    """Of k and seed, below tmp_path."""
    folder = tmp_path / "runs/docstrings/mine"
    for k, seed in itertools.product("48", "01"):
        write_job(folder, f"sae.k={k}", f"seed={seed}")
    return folder


def test_a_sweep_is_drawn_again_in_its_own_folder(sweep: Path):
    page = report([str(sweep)], quiet())
    assert page == sweep / "summary.html"
    text = page.read_text()
    assert "4 of 4 jobs finished" in text
    for split in ("subdomain", "general"):
        assert f"{split} perplexity against l0" in text
        assert f"{split} perplexity / generalist's against l0" in text
    assert "subdomain tail recall against l0" in text
    assert text.count("lowest seed to the highest") == 1
    ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    with (sweep / "arms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["sae.k"], row["seed"], row["arm"]) for row in rows} == set(
        itertools.product("48", "01", ARMS)
    )
    assert all(float(row["subdomain_test/l0"]) >= 4 for row in rows)


def test_without_a_swept_sparsity_the_page_has_no_curves(write_job: Write, tmp_path: Path):
    for tilt in "05":
        write_job(tmp_path, "sae.k=8", f"objective.tilt={tilt}")
    text = report([str(tmp_path)], quiet()).read_text()
    assert "Pareto curves" not in text
    assert "What is worth having" in text


def test_seeds_added_in_another_folder_are_averaged_with_the_first(
    sweep: Path, write_job: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = tmp_path / "runs/docstrings/more"
    write_job(more, "sae.k=4", "seed=2")
    write_job(more, "sae.k=8", "seed=2")
    assert [len(setting.jobs) for setting in settings_of(read_jobs(sweep, more))] == [3, 3]
    monkeypatch.chdir(tmp_path)
    page = report([str(sweep), str(more), "out=here/both.html"], quiet())
    assert page == Path("here/both.html")
    text = page.read_text()
    assert "6 of 6 jobs finished" in text
    assert "../runs/docstrings/more/sae.k%3D4%2Cseed%3D2/" in text  # links work from there
    assert (tmp_path / "here/both.csv").exists()
    assert report([str(sweep), str(more)], quiet()) == Path("summary.html")


def test_the_same_settings_of_two_folders_are_told_apart(
    sweep: Path, write_job: Write, tmp_path: Path
):
    again = tmp_path / "runs/docstrings/again"
    other = {"l0": 4.0, "perplexity_spliced": 30.0}  # something differs that no override says
    write_job(again, "sae.k=4", "seed=0", measure=lambda arm, words: other)
    names = {setting.name for setting in settings_of(read_jobs(sweep, again))}
    assert names == {"folder=mine k=4", "folder=mine k=8", "folder=again k=4"}


def test_a_job_that_is_another_one_again_is_no_other_seed(
    sweep: Path, write_job: Write, tmp_path: Path
):
    again = tmp_path / "runs/docstrings/again"
    write_job(again, "sae.k=4", "seed=0", "logger=wandb")
    assert len(read_jobs(sweep, again)) == len(read_jobs(sweep))
    names = {setting.name for setting in settings_of(read_jobs(sweep, again))}
    assert names == {"k=4", "k=8"}


def test_values_are_those_of_the_composed_config(tmp_path: Path, write_job: Write):
    """5_000 and 5000 are one setting; a seed that was not given is known."""
    for overrides, seed in ((("sae.k=4", "budget_tokens=5_000"), 0), (
        ("sae.k=4", "budget_tokens=5000", "seed=1"), 1
    )):  # fmt: skip
        folder = write_job(tmp_path / "mine", *overrides)
        (folder / ".hydra").mkdir()
        config = {"seed": seed, "budget_tokens": 5000, "sae": {"k": 4}}
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    [setting] = settings_of(read_jobs(tmp_path / "mine"))
    assert [job.overrides["seed"] for job in setting.jobs] == ["0", "1"]


def test_last_parts_of_keys_that_are_the_same_are_spelt_in_full():
    setting = (("generalist.lr", "1"), ("specialist.lr", "2"), ("sae.k", "4"))
    assert spell_settings([setting]) == ["generalist.lr=1 specialist.lr=2 k=4"]


def test_single_runs_and_the_folder_above_them_are_read_too(
    sweep: Path, write_run: Write, tmp_path: Path
):
    run = write_run(sweep.parent / "2026-01-01_00-00-00", "sae.k=16", "seed=0")
    (run / "logs").mkdir()
    unfinished = sweep.parent / "2026-01-01_00-00-01/.hydra"
    unfinished.mkdir(parents=True)
    [job] = read_jobs(run)
    assert job.finished
    assert job.overrides["sae.k"] == "16"
    assert job.value(("l0", "general_test")) == 16
    assert job.value(("l0", "general_test"), "nobody") is None
    assert len(read_jobs(sweep.parent)) == len(read_jobs(sweep, sweep.parent)) == 5


def test_folders_with_an_equals_sign_are_folders(sweep: Path):
    job = sweep / "sae.k=4,seed=0"
    assert parse([str(job), "logger=wandb", "logger.project=x"]) == (
        [job], job / "summary.html", ["logger=wandb", "logger.project=x"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a folder"),
        (["nowhere"], "'nowhere' is no folder"),
        (["nowhere=3"], "has no 'nowhere'"),
        (["-m"], "has no '-m'"),
        (["{sweep}", "out=page.pdf"], "out=summary.html"),
        (["{empty}"], "no finished run"),
        (["{sweep}", "logger=nothing"], "choices"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], said: str, sweep: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    (tmp_path / "empty").mkdir()
    filled = [word.format(sweep=sweep, empty=tmp_path / "empty") for word in words]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ssae", "report", *filled])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("ssae: ")
    assert said in line


@pytest.mark.slow
def test_wandb_gets_a_row_for_every_job_and_arm_and_the_figures(sweep: Path, start: Callable):
    process = start(sweep, "-m", "ssae", "report", str(sweep), "logger=wandb", WANDB_MODE="offline")
    assert process.end() == 0
    [path] = sweep.glob("logs/wandb/offline-run-*/run-*.wandb")
    read = records(path)
    run = next(record.run for record in read if record.HasField("run"))
    assert (run.display_name, run.job_type, run.project) == ("report", "report", "ssae")
    paths = {
        item.nested_key[0]: json.loads(item.value_json)
        for record in read
        for item in record.history.item
        if len(item.nested_key) > 1 and item.nested_key[1] == "path"
    }
    assert {"jobs", "summary"} < set(paths)
    assert sum(key.startswith("figures/") for key in paths) == 7  # 5 of curves, 2 of settings
    assert all((path.parent / "files" / file).exists() for file in paths.values())
    table = json.loads((path.parent / "files" / paths["jobs"]).read_text())
    assert len(table["data"]) == 4 * len(ARMS)
    columns = {"sae.k", "seed", "arm", "subdomain_test/l0", "subdomain_test/perplexity_spliced"}
    assert columns <= set(table["columns"])


def test_folders_of_one_name_are_told_apart_however_they_are_given(tmp_path, monkeypatch):
    for parent in ("a", "b"):
        folder = tmp_path / parent / "mine" / "job0"
        folder.mkdir(parents=True)
        record = {"status": "failed", "verb": "run", "overrides": ["seed=0"], "arm": None,
                  "error": "x", "seconds": 1.0, "host": "n", "job": None}  # fmt: skip
        (folder / "outcome.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    jobs = read_jobs(Path("a/mine"), tmp_path / "b/mine")
    assert sorted(job.overrides["folder"] for job in jobs) == ["a/mine", "b/mine"]
