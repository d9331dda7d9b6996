"""What a study leaves of W&B without a network, read back from its .wandb files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ssae.training.results import HEADLINE
from tests.training.wandb_service import records

ARMS = {"generalist", "control", "specialist_erm", "specialist"}

pytestmark = pytest.mark.slow


class Logged(NamedTuple):
    """The runs of one `ssae run logger=wandb`."""

    folder: Path
    runs: dict[str, tuple[Path, list[Any]]]
    """By name: the folder of W&B, and the records of its file."""
    stderr: str


@pytest.fixture(scope="module")
def logged(run_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Logged:
    folder = tmp_path_factory.mktemp("offline")
    words = [sys.executable, "-m", "ssae", "run", "logger=wandb", *run_overrides]
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = {}
    for path in folder.glob("runs/files/*/logs/wandb/offline-run-*/run-*.wandb"):
        read = records(path)
        [name] = {record.run.display_name for record in read if record.HasField("run")}
        runs[name] = path.parent, read
    return Logged(folder, runs, done.stdout + done.stderr)


def items(read: list[Any], kind: str) -> Iterator[dict[str, Any]]:
    """The rows of a history, or the updates of a summary; media by their key."""
    for record in read:
        if record.HasField(kind):
            updates = record.history.item if kind == "history" else record.summary.update
            row: dict[str, Any] = {}
            for item in updates:
                value = json.loads(item.value_json)
                if item.nested_key and len(item.nested_key) > 1:
                    row.setdefault(item.nested_key[0], {})[item.nested_key[1]] = value
                else:
                    row[item.key or item.nested_key[0]] = value
            yield row


def merged(read: list[Any], kind: str) -> dict[str, Any]:
    return {key: value for row in items(read, kind) for key, value in row.items()}


def test_every_arm_and_the_evaluation_have_a_run_in_one_group(logged: Logged):
    assert set(logged.runs) == {*ARMS, "evaluate"}
    [folder] = logged.folder.glob("runs/files/*")
    for name, (_, read) in logged.runs.items():
        run = next(record.run for record in read if record.HasField("run"))
        assert (run.run_group, run.job_type) == (f"files/{folder.name}", name)
        assert list(run.tags) == ["files"]
        assert sum(record.HasField("exit") for record in read) == 1
    assert logged.stderr.count("wandb sync") >= 5


@pytest.mark.parametrize("name", sorted(ARMS))
def test_training_leaves_config_curves_a_histogram_and_the_sae(logged: Logged, name: str):
    _, read = logged.runs[name]
    config = {u.key: json.loads(u.value_json) for r in read for u in r.config.update}
    assert config["seed"] == 0
    assert config["training"]["batch_size_tokens"] == 64
    rows = [row for row in items(read, "history") if "train/loss" in row]
    steps = [row["trainer/global_step"] for row in rows]
    assert steps == list(range(len(steps)))  # log_every_n_steps is 1
    assert all({"train/fvu", "train/l0", "train/dead"} <= set(row) for row in rows)
    rates = merged(read, "history")["train/firing_rates"]
    assert rates["_type"] == "histogram"
    assert len(rates["bins"]) == len(rates["values"]) + 1
    assert 0 < sum(rates["values"]) <= 64  # of the latents that fired
    [artifact] = [record.artifact for record in read if record.HasField("artifact")]
    assert (artifact.type, artifact.name) == ("sae", f"files-{name}")
    metadata = json.loads(artifact.metadata)
    assert (metadata["arm"], metadata["l0"]) == (name, 4)
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    [link] = logged.folder.glob(f"runs/files/*/artifacts/{name}")
    assert files == {f: link.resolve() / f for f in ("sae.json", "sae.safetensors")}
    assert link.resolve().name in artifact.aliases


def test_the_evaluation_leaves_every_row_and_table(logged: Logged):
    folder, read = logged.runs["evaluate"]
    [run] = logged.folder.glob("runs/files/*")
    tables = json.loads((run / "artifacts/evaluate/tables.json").read_text())
    tables["metrics"] = json.loads((run / "metrics.json").read_text())
    history = merged(read, "history")
    assert len(tables["metrics"]) > 50
    for name, rows in tables.items():
        if not rows:
            continue
        entry = history[f"tables/{name}"]
        assert entry["_type"] == "table-file"
        table = json.loads((folder / "files" / entry["path"]).read_text())
        rows = rows if isinstance(rows, list) else [rows]
        assert set(table["columns"]) == {key for row in rows for key in row}
        assert len(table["data"]) == len(rows)
    place = [table_column(folder, history, "tables/metrics", key) for key in ("name", "value")]
    expected = [(row["name"], row["value"]) for row in tables["metrics"]]
    assert list(zip(*place, strict=True)) == expected
    for row in tables["firing_rates"]:
        texts = [value for value in row.values() if isinstance(value, str)]
        histogram = history["/".join(["firing_rates", *texts])]
        assert histogram["values"] == row["counts"]


def table_column(folder: Path, history: dict[str, Any], key: str, column: str) -> list[Any]:
    table = json.loads((folder / "files" / history[key]["path"]).read_text())
    return [row[table["columns"].index(column)] for row in table["data"]]


def test_the_evaluation_leaves_the_report_with_its_figures(logged: Logged):
    folder, read = logged.runs["evaluate"]
    history = merged(read, "history")
    [page] = logged.folder.glob("runs/files/*/report.html")
    kept = folder / "files" / history["report"]["path"]
    assert kept.read_text("utf-8") == page.read_text("utf-8")
    figures = {key: value for key, value in history.items() if key.startswith("figures/")}
    assert len(figures) >= 5
    for entry in figures.values():
        assert (folder / "files" / entry["path"]).read_text("utf-8").startswith("<svg")


def test_runs_are_sorted_by_plain_numbers_of_the_studied_arm(logged: Logged):
    _, read = logged.runs["evaluate"]
    config = {u.key: json.loads(u.value_json) for r in read for u in r.config.update}
    assert config["sae"]["k"] == 4
    assert config["arm"] == "specialist"
    assert set(config["arms"]) == ARMS
    [page] = logged.folder.glob("runs/files/*/metrics.json")
    rows = json.loads(page.read_text())
    summary = merged(read, "summary")
    for key in ("val/perplexity_subdomain", "val/fvu_general", "val/l0"):
        name, split = HEADLINE[key]
        [row] = [
            row for row in rows
            if (row["name"], row["split"], row["sae"], row["band"])
            == (name, split, "specialist", "all")
        ]  # fmt: skip
        assert summary[key] == pytest.approx(row["value"])
        assert summary[f"{split}/{name}/specialist"] == pytest.approx(row["value"])
