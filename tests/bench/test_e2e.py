import importlib.util
import json
import os
import subprocess
import sys

import pytest

HAVE_PEERS = all(importlib.util.find_spec(name) for name in ("sae_lens", "sparsify"))


@pytest.fixture
def tiny(neox_folder, corpus_files) -> list[str]:
    """Overrides of a study that takes seconds."""
    return [
        "language_model=any", f"language_model.name={neox_folder}", "corpus=files",
        *(f"corpus.{name}={path}" for name, path in corpus_files.items()),
        "corpus.min_characters=1", "hookpoint=gpt_neox.layers.1", "context_length=32",
        "sae.d_sae=64", "sae.k=4", "training.batch_size_tokens=128", "trainer=cpu",
        "generalist.num_tokens=1280", "generalist.budget_tokens=1280",
        "activation.window_tokens=1024",
    ]  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ssae.bench", *arguments],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_all_contenders_train_as_many_tokens_on_the_same_text(tiny, tmp_path):
    out = tmp_path / "e2e.json"
    done = bench("e2e", "--rounds", "1", "--json", str(out), *tiny)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    expected = {"ssae", "ssae, activation=stream"}
    assert set(rows) == expected | ({"saelens", "sparsify"} if HAVE_PEERS else set()), done.stderr
    for row in rows.values():
        assert row["tokens"] == 1280
        assert row["tokens_per_second"] == pytest.approx(1280 / row["seconds"])
        assert row["runs"] == [row["seconds"]]


@pytest.mark.slow
def test_harvest_loader_and_memory_are_measured(tiny, tmp_path):
    out = tmp_path / "data.json"
    done = bench("data", "--rounds", "1", "--json", str(out), *tiny)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert 0 < found["harvest_share_of_bare"] < 1.5
    assert 0 < found["waiting_share"] < 1
    # Ten times as many tokens are 1.8 GB more on disk; some MB are noise, either way.
    assert min(found["rss_mb_1x"], found["rss_mb_10x"]) > 0
    assert found["rss_mb_10x"] < found["rss_mb_1x"] + 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("e2e", "--rounds", "0"), "--rounds must be at least 1, got 0"),
        (("data", "--rounds", "0"), "--rounds must be at least 1, got 0"),
        (("e2e", "--only", "nobody"), "--only nobody is in no name: ssae, "),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
