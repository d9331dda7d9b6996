import json
import subprocess
import sys

import pytest


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssae.bench", "index", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_measures_flat_and_another_index_and_writes_json(tmp_path):
    path = tmp_path / "found.json"
    done = bench(
        "--vectors", "3000", "--dim", "16", "--rounds", "2", "--threads", "1", "--json", str(path)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    flat, other = json.loads(path.read_text())
    assert (flat["kind"], other["kind"]) == ("flat", "ivf_flat")
    assert flat["recall"] == 1
    assert 0.95 <= other["recall"] <= 1
    assert flat["num_indexed"] == other["num_indexed"] == 3000
    for batch in ("batch", "one"):
        assert len(other[f"{batch}_times_flat"]) == len(other[f"{batch}_times_numpy"]) == 2
        assert other[f"{batch}_index_ms"] > 0
    assert "recall@100" in done.stdout


@pytest.mark.slow
def test_too_few_vectors_are_refused():
    done = bench("--vectors", "10")
    assert done.returncode == 1
    assert "--vectors must be at least 1000" in done.stderr
