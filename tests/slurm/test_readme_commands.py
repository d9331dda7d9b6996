"""The five commands of the README's section on clusters, on a small study without GPUs."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.slurm.conftest import REPOSITORY, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## From a laptop to a cluster")[1].split("\n## ")[0]
COMMANDS = [line for line in re.findall(r"```bash\n(.*?)```", SECTION, re.S)[0].splitlines()
            if not line.startswith("#")]  # fmt: skip
WITHOUT_GPUS = {"--gpus-per-node=1": "--cpus-per-task=1", "--gpus-per-node=4": "--cpus-per-task=1",
                "--ntasks-per-node=4": "--ntasks-per-node=1", "--time=4:00:00": "--time=20",
                "hydra.launcher.timeout_min=240": "hydra.launcher.timeout_min=20"}  # fmt: skip


def test_there_are_five_commands():
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_works(cluster: Cluster, run_overrides: list[str], tmp_path, line: str):
    words = [WITHOUT_GPUS.get(word, word) for word in shlex.split(line)]
    if words[0] == "ssae":
        words = [sys.executable, "-m", *words, *run_overrides]
    elif words[0] == "slurm/submit":
        words = [str(REPOSITORY / words[0]), "cpu", *words[1:], *run_overrides]
    else:
        launcher = ("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1")
        words = [str(REPOSITORY / words[0]), *words[1:], *launcher, *run_overrides]
    # Smaller sweeps of the same kind.
    fewer = {
        "objective.tilt=0,1,5": "objective.tilt=0,5",
        "objective.tilt=-2,0,1": "objective.tilt=-2,0",
        "seed=0,1,2": "seed=0,1",
    }
    words = [fewer.get(word, word) for word in words]
    done = subprocess.run(
        words, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.search(r"Submitted batch job (\d+)", done.stdout)
    if job:
        log = tmp_path / f"runs/slurm/{job[1]}.log"
        assert cluster.end(job[1], log) == "COMPLETED", log.read_text()
    made = list(tmp_path.glob("artifacts/train/*/sae.safetensors"))
    if "seed=0,1" in words:
        assert "4 of 4 jobs finished" in done.stdout
        assert len(made) == 2 * 5  # a seed has a generalist, a control, specialist_erm, 2 tilts
    elif "train" in words:
        assert len(made) == 2  # and the generalist, which it starts from
    else:
        assert len(made) == 4
        assert list(tmp_path.glob("runs/*/*/report.html"))
