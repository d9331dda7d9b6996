"""The file of an array's jobs: words are those of a shell, a wrong line is refused at once."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LINES = Path(__file__).parents[2] / "slurm/lines.py"


def lines(path: Path, *number: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, LINES, path, *number]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_words_are_those_of_a_shell(tmp_path, end):
    jobs = [
        "seed=1 objective.tilt=5", "'name=a b' \"hookpoints=[x, y]\"", "~logger +a.b=it\\'s",
        "sae@extra_sae=topk ++x=", "corpus.pool=/a/b.jsonl",
    ]  # fmt: skip
    path = tmp_path / "jobs.txt"
    text = [jobs[0] + " # the first", "", "# a comment", *jobs[1:], ""]
    path.write_bytes(end.join(text).encode())
    assert lines(path).stdout == f"{len(jobs)}\n"
    for number, job in enumerate(jobs, 1):
        assert lines(path, str(number)).stdout.split("\0")[:-1] == shlex.split(job)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed=1\nname=it's\n", "line 2: No closing quotation"),
        ("seed=1\nseed 2\n", "line 2: 'seed' is no override; write key=value"),
        ("seed=1 --flag\n", "line 1: '--flag' is no override"),
        ("# only this\n\n", "has no line with overrides"),
        ("", "has no line with overrides"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, message):
    path = tmp_path / "jobs.txt"
    path.write_text(content)
    done = lines(path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("number", ["0", "3", "9"])
def test_a_job_that_the_file_does_not_have_is_refused(tmp_path, number):
    path = tmp_path / "jobs.txt"
    path.write_text("seed=1\nseed=2\n")
    done = lines(path, number)
    assert done.returncode == 1
    assert f"has jobs 1 to 2, not {number}; set --array" in done.stderr
    assert not done.stdout
