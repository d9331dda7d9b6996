"""Who holds a lease builds; who died, stood still or sits on another machine is found out."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ssae.artifact import lease as leases
from ssae.artifact.lease import check_lease, lease
from ssae.artifact.store import build

REPOSITORY = Path(__file__).parents[2]

HOLD = """
import sys, time
from pathlib import Path
from ssae.artifact.lease import lease
with lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float, *launcher: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*launcher, sys.executable, "-c", HOLD, str(path), str(seconds)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_others_wait_until_the_holder_is_done(tmp_path):
    process = hold(tmp_path / "verb/hash", 2)
    start = time.monotonic()
    with lease(tmp_path / "verb/hash"):
        assert time.monotonic() - start > 1
        assert process.poll() is None or process.returncode == 0
    assert process.wait(timeout=30) == 0
    assert not list((tmp_path / "verb").iterdir())


def test_a_holder_that_was_killed_is_followed_at_once_on_its_machine(tmp_path):
    process = hold(tmp_path / "verb/hash", 600)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert (tmp_path / "verb/hash.lease").exists()
    start = time.monotonic()
    with lease(tmp_path / "verb/hash"):
        assert time.monotonic() - start < 10


def test_a_holder_on_another_machine_is_followed_when_it_no_longer_renews(tmp_path, monkeypatch):
    """A namespace with a host name of its own stands for the machine, SIGKILL for its loss."""
    if os.geteuid() != 0:
        pytest.skip("a host name of its own takes root")
    there = (
        "import os, socket, sys; socket.sethostname('there'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    code = HOLD.replace(
        "with lease", "import ssae.artifact.lease as leases\nleases.LEASE_SECONDS = 3.0\nwith lease"
    )
    process = subprocess.Popen(
        ["unshare", "--uts", sys.executable, "-c", there, sys.executable, "-c", code,
         str(tmp_path / "verb/hash"), "600"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert socket.gethostname() not in (tmp_path / "verb/hash.lease").read_text()
    waited: list[float] = []

    def wait() -> None:
        start = time.monotonic()
        with lease(tmp_path / "verb/hash"):
            waited.append(time.monotonic() - start)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(6)  # twice the lease: who renews it keeps it
    assert not waited
    process.kill()
    waiting.join(timeout=60)
    assert 6 < waited[0] < 20


def test_a_builder_that_was_taken_for_dead_publishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)

    def make(folder: Path) -> dict:
        (folder / "content").write_text("old")
        [path] = (tmp_path / "verb").glob("*.lease")
        path.unlink()  # as who takes it over does
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.3)
            if leases._held[path.with_suffix("")].compromise:
                break
        return {}

    with pytest.raises(ValueError, match="another process builds it by now"):
        build(tmp_path, "verb", {}, make)
    assert not [path for path in (tmp_path / "verb").iterdir() if not path.suffix]


def test_who_holds_a_lease_may_go_on(tmp_path):
    with lease(tmp_path / "verb/hash"):
        check_lease(tmp_path / "verb/hash")


def take(path: str) -> tuple[float, float]:
    with lease(Path(path)):
        start = time.monotonic()
        time.sleep(0.05)
        return start, time.monotonic()


def test_never_two_hold_it(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        spans = sorted(pool.map(take, [str(tmp_path / "verb/hash")] * 12))
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
