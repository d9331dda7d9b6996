"""Sweeps of the real command: a failure does not end them, what is done is not done again."""

import json
import os
import signal
from pathlib import Path

import pytest

from ssae.sweep.outcome import metric, metrics, read


def outcomes(folder: Path) -> dict[str, dict]:
    paths = folder.glob("runs/*/sweep_*/*/outcome.json")
    return {path.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text()) for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failing_job_does_not_end_a_sweep_and_a_relaunch_does_only_what_is_left(
    train_command, start, tmp_path, launcher
):
    command = [
        *train_command(generalist__num_tokens=str(64 * 20)), "-m", "sae.k=65,2,4",
        f"hydra/launcher={launcher}",
    ]  # fmt: skip
    process = start(tmp_path, *command)
    assert process.end() == 1
    [said] = process.said()
    assert "k" in said
    assert {k: o["status"] for k, o in outcomes(tmp_path).items()} == {
        "sae.k=65": "failed", "sae.k=2": "finished", "sae.k=4": "finished",
    }  # fmt: skip
    assert outcomes(tmp_path)["sae.k=65"]["error"] == said
    [page] = tmp_path.glob("runs/*/sweep_*/summary.html")
    assert said.split(";")[0][:30] in page.read_text()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/sweep_*/*/outcome.json")}
    # The order of the overrides does not matter, nor does the launcher.
    again = start(tmp_path, *command[:3], *reversed(command[3:-3]), *command[-3:-1])
    assert again.end() == 1
    changed = {
        p.parent.name.rsplit("-", 1)[0] for p, t in times.items() if t != p.stat().st_mtime_ns
    }
    assert changed == {"sae.k=65"}
    assert len(list(tmp_path.glob("runs/*/sweep_*"))) == 1


@pytest.mark.slow
def test_jobs_of_studies_of_several_names_are_one_sweep(train_command, start, tmp_path):
    command = train_command(generalist__num_tokens=str(64 * 20))
    process = start(tmp_path, *command, "-m", "name=first,second,a/b")
    assert process.end() == 0
    [page] = tmp_path.glob("runs/*/sweep_*/summary.html")
    assert "3 of 3 jobs finished" in page.read_text()
    [table] = tmp_path.glob("runs/*/sweep_*/summary.csv")
    header, *rows = table.read_text().splitlines()
    assert "train/fvu" in header
    assert len(rows) == 3


@pytest.mark.slow
def test_a_killed_worker_leaves_a_summary_and_a_line(train_command, start, tmp_path):
    command = train_command()
    process = start(tmp_path, *command, "-m", "sae.k=2,4", "hydra/launcher=joblib")
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt", 2)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        words = path.read_bytes() if path.exists() else b""
        parent = path.with_name("stat").read_text().split(")")[1].split()[1] if words else ""
        if b"popen_loky_posix" in words and parent == str(process.popen.pid):
            os.kill(int(path.parent.name), signal.SIGKILL)
            break
    assert process.end() == 1
    assert len(process.said()) == 1
    assert "Traceback" not in process.err.read_text().split("ssae: ")[-1]
    [page] = tmp_path.glob("runs/*/sweep_*/summary.html")
    assert "0 of 2 jobs finished" in page.read_text()
    again = start(tmp_path, *command, "-m", "sae.k=2,4")
    assert again.end() == 0
    assert "2 of 2 jobs finished" in page.read_text()


def test_a_metric_is_found_by_its_name(tmp_path):
    rows = [
        {"name": "fvu", "split": "general_test", "sae": "generalist", "band": band, "value": value}
        for band, value in (("< 1", 0.9), ("all", 0.25))
    ]
    (tmp_path / "metrics.json").write_text(json.dumps(rows))
    assert metrics(tmp_path) == rows
    assert metric(rows, "general_test/fvu/generalist") == 0.25
    assert metric(rows, "general_test/fvu/specialist") is None
    assert metrics(tmp_path / "none") == []


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00\xff"])
def test_an_outcome_that_cannot_be_read_is_none(tmp_path, content):
    (tmp_path / "outcome.json").write_text(content)
    assert read(tmp_path) == {}
