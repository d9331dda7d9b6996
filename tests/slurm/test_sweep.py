"""Sweeps through submitit: one harvest for all jobs, errors in the summary, nothing done twice."""

import csv
import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import SLURM, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LAUNCHER = (
    "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=10",
)  # fmt: skip


def sweep(cluster: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SLURM / "sweep", "train", *LAUNCHER, *words], cwd=folder, env=cluster.environment,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
    [path] = folder.glob("runs/*/sweep_*/summary.csv")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_four_shares_the_harvest_and_is_not_done_twice(cluster, overrides, tmp_path):
    words = [
        *overrides(generalist__num_tokens=str(64 * 20)),
        "training.warmup_steps=5,10",
        "sae.k=2,4",
    ]
    first = sweep(cluster, tmp_path, *words)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 of 4 jobs finished" in first.stdout
    found = rows(tmp_path)
    assert {(row["training.warmup_steps"], row["sae.k"]) for row in found} == {
        ("5", "2"), ("5", "4"), ("10", "2"), ("10", "4")
    }  # fmt: skip
    assert {row["status"] for row in found} == {"finished"}
    assert all(
        re.fullmatch(r"sae\.k=\d,training.warmup_steps=\d+-\w{8}", r["folder"]) for r in found
    )
    made = [path for path in tmp_path.glob("artifacts/harvest/*") if path.is_dir()]
    assert len(made) == 1
    trained = {p: p.stat().st_mtime_ns for p in tmp_path.glob("artifacts/train/*/sae.safetensors")}
    assert len(trained) == 4
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*/sweep_*/.submitit/*/*.out"))
    assert logs.count("harvesting") == 1  # by one of the jobs, the others waited or came later
    outcomes = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/sweep_*/*/outcome.json")}
    again = sweep(cluster, tmp_path, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 of 4 jobs finished" in again.stdout
    assert outcomes == {path: path.stat().st_mtime_ns for path in outcomes}
    assert trained == {path: path.stat().st_mtime_ns for path in trained}


def test_a_job_that_fails_says_why_in_the_summary(cluster, overrides, tmp_path):
    words = [*overrides(generalist__num_tokens=str(64 * 20)), "sae.k=4,65"]
    done = sweep(cluster, tmp_path, *words)
    assert done.returncode == 1
    assert "1 of 2 jobs finished" in done.stdout
    [failed] = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert failed.startswith("failed: sae.k=65: ")
    good, bad = sorted(rows(tmp_path), key=lambda row: int(row["sae.k"]))
    assert (good["status"], good["error"]) == ("finished", "")
    assert bad["status"] == "failed"
    assert "k" in bad["error"]
    assert bad["error"] in failed
    [page] = tmp_path.glob("runs/*/sweep_*/summary.html")
    assert "failed" in page.read_text()


def test_jobs_of_two_ranks_are_jobs_of_two_tasks(cluster, overrides, tmp_path):
    words = [*overrides(generalist__num_tokens=str(64 * 20)), "sae.k=2,4", "trainer.devices=2"]
    done = sweep(cluster, tmp_path, *words, "hydra.launcher.tasks_per_node=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 jobs finished" in done.stdout
    logs = [path.read_text() for path in tmp_path.glob("runs/*/sweep_*/.submitit/*/*.out")]
    assert len(logs) == 4
    assert sum("in memory of each of 2 ranks" in log for log in logs) == 2  # rank 0 says it


def test_ranks_of_a_job_that_the_trainer_does_not_know_of_are_refused(cluster, overrides, tmp_path):
    words = [*overrides(generalist__num_tokens=str(64 * 20)), "sae.k=2,4"]
    done = sweep(cluster, tmp_path, *words, "hydra.launcher.tasks_per_node=2")
    assert done.returncode == 1
    assert "2 ranks were started for trainer.devices x trainer.num_nodes = 1" in done.stdout


def test_the_sites_flags_are_defaults_and_its_container_is_refused(
    cluster, overrides, clone, tmp_path
):
    site = clone / "slurm/site.sh"
    site.write_text("export SBATCH_PARTITION=nowhere SBATCH_TIMELIMIT=1\n")
    words = [*LAUNCHER, *overrides(generalist__num_tokens=str(64 * 20)), "sae.k=2,4"]
    command = [clone / "slurm/sweep", "train", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "invalid partition specified: nowhere" in done.stderr
    done = subprocess.run(
        [*command, "hydra.launcher.partition=dev"], cwd=tmp_path, env=cluster.environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs finished" in done.stdout
    site.write_text("container=(apptainer exec ssae.sif)\n")
    done = subprocess.run(
        command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "slurm/submit array" in done.stderr


def test_a_sweep_given_again_waits_for_the_jobs_it_already_has(cluster, overrides, tmp_path):
    words = [*overrides(), "sae.k=2,4"]
    command = [SLURM / "sweep", "train", *LAUNCHER, *words]
    first = subprocess.Popen(command, cwd=tmp_path, env=cluster.environment)
    try:
        for _ in range(600):
            if list(tmp_path.glob("artifacts/train/*.checkpoints/step=*.ckpt")):
                break
            time.sleep(0.2)
    finally:
        first.kill()  # the laptop is closed
    again = sweep(cluster, tmp_path, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "waiting for jobs of this sweep" in again.stdout + again.stderr
    assert "2 of 2 jobs finished" in again.stdout
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*/sweep_*/.submitit/*/*.out"))
    assert logs.count("generalist: 4000 steps of 64 tokens") == 2  # once each
    assert logs.count("finished before, skipped") == 2


def test_a_sweep_that_is_warned_continues(cluster, overrides, tmp_path):
    words = [*overrides(), "sae.k=2,4"]
    process = subprocess.Popen(
        [SLURM / "sweep", "train", *LAUNCHER, *words], cwd=tmp_path, env=cluster.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    array = ""
    try:
        for _ in range(600):
            if len(list(tmp_path.glob("artifacts/train/*.checkpoints/step=*.ckpt"))) >= 2:
                break
            time.sleep(0.2)
        queue = [line.split() for line in cluster("squeue", "-h", "-o", "%F %Z").splitlines()]
        [array] = {number for number, folder in queue if folder == str(tmp_path)}
        cluster("scancel", "--signal=USR2", array)
        for task in ("0", "1"):
            cluster.end(f"{array}_{task}", tmp_path / "none")
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "2 of 2 jobs finished" in said
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*/sweep_*/.submitit/*/*.out"))
    assert logs.count("continuing from") == 2
    for path in tmp_path.glob("runs/*/sweep_*/*/outcome.json"):
        assert json.loads(path.read_text())["status"] == "finished"
