"""Folders of sweeps and runs, written without training anything."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ARMS = ("generalist", "control", "specialist")
Measure = Callable[[str, dict[str, str]], dict[str, float]]


def measured(arm: str, words: dict[str, str]) -> dict[str, float]:
    """Only the specialist depends on the tilt; all depend on k and seed."""
    k, seed, place = float(words["sae.k"]), float(words.get("seed", "0")), ARMS.index(arm)
    tilt = float(words.get("objective.tilt", "0")) if arm == "specialist" else 0.0
    perplexity = 20 + 100 / k - 2 * place + seed + tilt
    return {"l0": k + seed / 8, "perplexity_spliced": perplexity, "tail_recall": k / 100 + place}


def rows(words: dict[str, str], measure: Measure) -> list[dict[str, object]]:
    return [
        {"name": name, "value": value, "sae": arm, "split": split, "band": "all"}
        for arm in ARMS
        for split in ("subdomain_test", "general_test")
        for name, value in measure(arm, words).items()
    ]


@pytest.fixture
def write_job() -> Callable[..., Path]:
    """Return a function that writes a finished job of a sweep."""

    def write(
        folder: Path, *overrides: str, measure: Measure = measured, **outcome: object
    ) -> Path:
        path = folder / ",".join(overrides)
        path.mkdir(parents=True)
        record = {
            "status": "finished", "config": "0", "verb": "run", "overrides": list(overrides),
            "arm": "specialist", "value": 1.0, "seconds": 1.5, "error": None, "host": "n1",
            "job": None,
        } | outcome  # fmt: skip
        (path / "outcome.json").write_text(json.dumps(record))
        if record["status"] == "finished":
            words = dict(word.split("=", 1) for word in overrides)
            (path / "metrics.json").write_text(json.dumps(rows(words, measure)))
        return path

    return write


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Return a function that writes what `ssae run` leaves of a run that is no sweep's."""

    def write(folder: Path, *overrides: str) -> Path:
        (folder / ".hydra").mkdir(parents=True)
        words = ["verb=run", *overrides]
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(words))
        config = {"verb": "run", "arm": "specialist", "name": "docstrings"}
        (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
        found = dict(word.split("=", 1) for word in overrides)
        (folder / "metrics.json").write_text(json.dumps(rows(found, measured)))
        return folder

    return write
