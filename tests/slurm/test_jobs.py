"""Jobs on a real SLURM: two nodes are one process, and whatever ends a job, it ends as without."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.slurm.conftest import REPOSITORY, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

KEY = "planted-key-" + "0123456789abcdef" * 2


def sae_file(folder: Path) -> Path:
    [path] = folder.glob("artifacts/train/*/sae.safetensors")
    return path


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("artifacts/train/*.checkpoints/step=*.ckpt"))


@pytest.fixture(scope="session")
def uninterrupted(
    start: Callable, overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The SAE that one process trains without SLURM and without an interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(folder, "-m", "ssae", "train", *overrides()).end() == 0
    return sae_file(folder).read_bytes()


def test_two_nodes_train_what_one_process_trains(cluster, start, overrides, tmp_path):
    words = overrides(generalist__num_tokens=str(64 * 50), trainer__precision="64-true")
    job = cluster.submit(
        tmp_path, "cpu", "train", "--nodes=2", "--cpus-per-task=1", "--time=10", "--", *words
    )
    log = tmp_path / f"runs/slurm/{job}.log"
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    assert "on n[1-2], 1 tasks a node" in log.read_text()
    assert list(tmp_path.glob(f"runs/*/job_{job}/.hydra/config.yaml"))
    (tmp_path / "alone").mkdir()
    assert start(tmp_path / "alone", "-m", "ssae", "train", *words).end() == 0
    ours, alone = load_file(sae_file(tmp_path)), load_file(sae_file(tmp_path / "alone"))
    assert ours.keys() == alone.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], alone[name], rtol=0, atol=1e-12)


def test_several_tasks_of_a_node_harvest_and_train(cluster, overrides, tmp_path):
    words = overrides(generalist__num_tokens=str(64 * 20))
    flags = ("--ntasks-per-node=2", "--cpus-per-task=1", "--time=10")
    job = cluster.submit(tmp_path, "cpu", "harvest", *flags, "--", *words)
    log = tmp_path / f"runs/slurm/{job}.log"
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    assert "on n1, 2 tasks a node" in log.read_text()
    [shards] = [p for p in tmp_path.glob("artifacts/harvest/*") if p.is_dir()]
    assert list(shards.glob("shard_*.safetensors"))


def warn(cluster: Cluster, job: str) -> None:
    cluster("scancel", "--signal=USR1", job)


def lose_node(cluster: Cluster, job: str) -> None:
    # Its processes are killed at once; the node then returns by itself (ReturnToService=2).
    cluster("scontrol", "update", "nodename=n2", "state=down", "reason=test")


@pytest.mark.parametrize(
    ("interrupt", "flags"),
    [(warn, ("--time=10",)), (lose_node, ("--time=10", "--nodelist=n2"))],
)
def test_a_requeued_job_ends_with_the_same_bits(
    cluster, overrides, uninterrupted, tmp_path, interrupt, flags
):
    flags = ("--cpus-per-task=1", *flags)
    job = cluster.submit(tmp_path, "cpu", "train", *flags, "--", *overrides())
    log = tmp_path / f"runs/slurm/{job}.log"
    cluster.wait_for(lambda: checkpoints(tmp_path), job, log)
    interrupt(cluster, job)
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    text = log.read_text()
    assert "start 2" in text
    assert "continuing from" in text
    assert ("requeueing job" in text) == (interrupt is warn)
    assert sae_file(tmp_path).read_bytes() == uninterrupted
    assert not checkpoints(tmp_path)


def test_a_job_whose_time_is_up_goes_on_until_its_last_step(cluster, start, overrides, tmp_path):
    """SLURM looks at the time every half minute, so the job takes longer than that."""
    words = overrides(generalist__num_tokens=str(64 * 20_000))
    flags = ("--cpus-per-task=1", "--time=1", "--signal=USR1@50")
    job = cluster.submit(tmp_path, "cpu", "train", *flags, "--", *words)
    log = tmp_path / f"runs/slurm/{job}.log"
    (tmp_path / "whole").mkdir()
    whole = start(tmp_path / "whole", "-m", "ssae", "train", *words)
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    assert "start 2" in log.read_text()
    assert "requeueing job" in log.read_text()
    assert whole.end() == 0
    assert sae_file(tmp_path).read_bytes() == sae_file(tmp_path / "whole").read_bytes()


def test_where_nothing_is_requeued_the_job_submits_its_successor(
    cluster, overrides, uninterrupted, tmp_path
):
    flags = ("--cpus-per-task=1", "--time=10", "--no-requeue")
    job = cluster.submit(tmp_path, "cpu", "train", *flags, "--", *overrides())
    log = tmp_path / f"runs/slurm/{job}.log"
    cluster.wait_for(lambda: checkpoints(tmp_path), job, log)
    warn(cluster, job)
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    successor = str(int(job) + 1)
    after = tmp_path / f"runs/slurm/{successor}.log"
    assert cluster.end(successor, after) == "COMPLETED", after.read_text()
    assert "continuing from" in after.read_text()
    assert len(list(tmp_path.glob("runs/*/job_*"))) == 1  # one run, one folder
    assert sae_file(tmp_path).read_bytes() == uninterrupted


def test_a_cancelled_job_leaves_a_state_that_the_same_command_continues(
    cluster, start, overrides, uninterrupted, tmp_path
):
    flags = ("--cpus-per-task=1", "--time=10")
    job = cluster.submit(tmp_path, "cpu", "train", *flags, "--", *overrides())
    log = tmp_path / f"runs/slurm/{job}.log"
    cluster.wait_for(lambda: checkpoints(tmp_path), job, log)
    cluster("scancel", job)
    assert cluster.end(job, log) == "CANCELLED"
    assert checkpoints(tmp_path)
    assert not list(tmp_path.glob("artifacts/train/*/"))[1:]
    assert start(tmp_path, "-m", "ssae", "train", *overrides()).end() == 0
    assert sae_file(tmp_path).read_bytes() == uninterrupted


def test_a_queued_job_runs_the_code_it_was_submitted_with(cluster, overrides, clone, tmp_path):
    words = overrides(generalist__num_tokens=str(64 * 20))
    job = cluster.submit(
        tmp_path, "cpu", "train", "--hold", "--cpus-per-task=1", "--", *words, slurm=clone / "slurm"
    )
    (clone / "ssae/cli.py").write_text("raise SystemExit('edited')")
    shutil.rmtree(clone / "conf")
    (clone / "slurm/job.sh").write_text("exit 1")
    cluster("scontrol", "release", job)
    log = tmp_path / f"runs/slurm/{job}.log"
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    assert sae_file(tmp_path).exists()


def test_sbatch_itself_works_from_any_folder(cluster, overrides, tmp_path):
    words = overrides(generalist__num_tokens=str(64 * 20))
    flags = ("--cpus-per-task=1", "--time=10", "--output=job.log")
    said = cluster("sbatch", *flags, str(REPOSITORY / "slurm/cpu.sbatch"), "train", *words,
                   cwd=tmp_path)  # fmt: skip
    job = said.split()[-1]
    assert cluster.end(job, tmp_path / "job.log") == "COMPLETED", (tmp_path / "job.log").read_text()
    assert sae_file(tmp_path).exists()
    assert (tmp_path / f"runs/slurm/{job}.snapshot").read_text().startswith(str(tmp_path))


def test_a_file_of_overrides_becomes_an_array(cluster, overrides, tmp_path):
    words = overrides(generalist__num_tokens=str(64 * 20))
    lines = tmp_path / "jobs.txt"
    lines.write_text("# tilts\nseed=1\n\n'seed=2' name=second\n")
    flags = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
    job = cluster.submit(tmp_path, "array", "train", str(lines), *flags, "--", *words)
    lines.write_text("edited=1\n")
    logs = [tmp_path / f"runs/slurm/{job}_{task}.log" for task in (1, 2)]
    for task, log in zip((1, 2), logs, strict=True):
        assert cluster.end(f"{job}_{task}", log) == "COMPLETED", log.read_text()
    assert len(list(tmp_path.glob("artifacts/train/*/sae.safetensors"))) == 2
    assert list(tmp_path.glob(f"runs/second/job_{job}_2"))


def test_a_key_is_in_no_file_and_a_requeued_run_of_wandb_stays_one(
    cluster, overrides, uninterrupted, tmp_path
):
    flags = ("--cpus-per-task=1", "--time=10")
    words = overrides(logger="wandb")
    environment = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "HF_TOKEN": f"hf_{KEY}"}
    job = cluster.submit(tmp_path, "cpu", "train", *flags, "--", *words, **environment)
    log = tmp_path / f"runs/slurm/{job}.log"
    cluster.wait_for(lambda: checkpoints(tmp_path), job, log)
    warn(cluster, job)
    assert cluster.end(job, log) == "COMPLETED", log.read_text()
    runs = list(tmp_path.glob(f"runs/*/job_{job}/logs/wandb/offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert len({path.name for path in runs}) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert sae_file(tmp_path).read_bytes() == uninterrupted


@pytest.mark.parametrize(
    ("file", "line", "program"),
    [
        ("conf/logger/mine.yaml", f"api_key: {KEY}", "submit"),
        ("slurm/site.sh", f"export WANDB_API_KEY={KEY}", "submit"),
        ("slurm/site.sh", f"WANDB_API_KEY={KEY}", "sweep"),
    ],
)
def test_a_snapshot_that_would_hold_a_key_is_refused(cluster, clone, tmp_path, file, line, program):
    (clone / file).write_text(f"{line}\n")
    key = {"WANDB_API_KEY": KEY} if file.startswith("conf") else {}
    done = subprocess.run(
        [clone / "slurm" / program, "train", *(["--"] if program == "submit" else []), "seed=1"],
        cwd=tmp_path, text=True, env=cluster.environment | key, capture_output=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"{file} holds the value of WANDB_API_KEY" in done.stderr
    assert KEY not in done.stderr
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [path for path in left if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "slurm/submit harvest"),
        (["nonsense"], "slurm/submit harvest"),
        (["train", "objective.tilt=5"], "it comes after --"),
        (["array", "train", "no_such_file"], "there is no file 'no_such_file'"),
        (["array", "train", "bad.txt"], "bad.txt, line 1: No closing quotation"),
        (["cpu", "trian"], "'trian' is not one of run, retrieve"),
        (["cpu", "--time=5", "--", "arm=x"], "'--time=5' is not one of run, retrieve"),
        (["run", "++a=5"], "it comes after --"),
        (["run", "~logger"], "it comes after --"),
    ],
)
def test_a_wrong_submission_says_what_is_right(cluster, tmp_path, words, message):
    (tmp_path / "bad.txt").write_text("name=it's\n")
    done = subprocess.run(
        [REPOSITORY / "slurm/submit", *words], cwd=tmp_path, env=cluster.environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "runs/slurm").exists()


def test_the_cluster_ends_only_what_is_its_own(cluster, tmp_path):
    script = REPOSITORY / "slurm/dev_cluster.sh"
    environment = cluster.environment | {"SSAE_CLUSTER": str(tmp_path)}
    (tmp_path / "mine").write_text("precious")
    for verb in ("up", "down"):
        done = subprocess.run([script, verb], env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "holds no cluster of this script" in done.stderr
    spaced = environment | {"SSAE_CLUSTER": str(tmp_path / "a b")}
    done = subprocess.run([script, "up"], env=spaced, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has a space" in done.stderr
    # A pid file that names another process, as after a restart of the machine.
    (tmp_path / "mine").unlink()
    (tmp_path / "slurm.conf").write_text("ClusterName=ssae_dev\n")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "slurmctld.pid").write_text(str(bystander.pid))
    assert subprocess.run([script, "down"], env=environment).returncode == 0
    assert bystander.poll() is None
    bystander.kill()
    assert not tmp_path.exists()
    assert subprocess.run([script, "status"], env=cluster.environment).returncode == 0
