"""A SLURM cluster of two nodes on this machine, one for each process of the tests."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SLURM = REPOSITORY / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# States that a job does not leave by itself; others (RUNNING, SIGNALING, REQUEUED, ...) pass.
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class Cluster:
    """The commands of a running cluster."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a command on the cluster and return what it prints."""
        done = subprocess.run(
            words, cwd=cwd, env=self.environment | environment, capture_output=True, text=True,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, folder: Path, *words: str, slurm: Path = SLURM, **environment: str) -> str:
        """Submit a job in a folder and return its number."""
        said = self(str(slurm / "submit"), *words, cwd=folder, **environment)
        return re.search(r"Submitted batch job (\d+)", said)[1]  # pyright: ignore

    def state(self, job: str) -> str:
        """Return RUNNING, PENDING, ..."""
        shown = self("scontrol", "show", "job", job)
        return re.search(r"JobState=(\w+)", shown)[1]  # pyright: ignore

    def wait_for(self, what: Callable[[], object], job: str, log: Path) -> None:
        """Wait until `what` holds, as long as the job may still bring it about."""
        deadline = time.monotonic() + 240
        while not what():
            state = self.state(job)
            text = log.read_text() if log.exists() else ""
            assert state not in ENDED, f"{state}\n{text}"
            assert time.monotonic() < deadline, f"{state}\n{text}"
            time.sleep(0.2)

    def end(self, job: str, log: Path) -> str:
        """Return the state of a job that has ended; one that was requeued need not wait."""
        deadline = time.monotonic() + 1200
        pending = 0
        while (state := self.state(job)) not in ENDED:
            if time.monotonic() > deadline:
                log_text = log.read_text() if log.exists() else ""
                raise AssertionError(self("scontrol", "show", "job", job) + log_text)
            # SLURM itself lets two minutes pass, so that all of the old job is gone.
            pending = pending + 1 if state == "PENDING" and not self.alive(job) else 0
            if pending == 10:
                subprocess.run(
                    ["scontrol", "update", f"jobid={job}", "starttime=now"],
                    env=self.environment, capture_output=True,
                )  # fmt: skip
            time.sleep(0.5)
        return state

    def alive(self, job: str) -> bool:
        """Whether a daemon of an earlier start of the job, which holds its processes, is left."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if path.read_bytes().startswith(f"slurmstepd: [{job}.".encode()):
                    return True
        return False


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what is submitted, for tests that change it."""
    ignored = shutil.ignore_patterns("__pycache__", "site.sh")
    for name in ("ssae", "conf", "slurm"):
        shutil.copytree(REPOSITORY / name, tmp_path / "clone" / name, ignore=ignored)
    return tmp_path / "clone"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    environment = os.environ | {
        "SSAE_CLUSTER": str(tmp_path_factory.mktemp("cluster") / "files"),
        "SSAE_PYTHON": sys.executable,
        "PATH": SYSTEM,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment = {k: v for k, v in environment.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    up = subprocess.run(
        [SLURM / "dev_cluster.sh", "up"], env=environment, capture_output=True, text=True
    )
    if up.returncode != 0 and os.geteuid() != 0:
        pytest.skip(f"the cluster did not start without root: {up.stderr.strip()[-300:]}")
    assert up.returncode == 0, up.stderr
    conf = re.search("SLURM_CONF=(.*)", up.stdout)[1]  # pyright: ignore
    yield Cluster(environment | {"SLURM_CONF": conf})
    subprocess.run([SLURM / "dev_cluster.sh", "down"], env=environment, check=True)


@pytest.fixture(scope="session")
def overrides(train_command: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return a function that gives the overrides of a small study."""
    return lambda **values: train_command(**values)[3:]
