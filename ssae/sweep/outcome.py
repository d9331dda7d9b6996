"""How a job of a sweep ended: `outcome.json` in its folder, where relaunches and summaries look.

    {"status": "finished", "config": "3f2a...", "verb": "run", "overrides": ["objective.tilt=5"],
     "arm": "specialist", "value": 20.7, "seconds": 61.2, "error": null, "host": "n1", "job": "7_4"}

status is running, finished, failed or interrupted. A process that was killed leaves "running".
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ssae import __version__
from ssae.artifact.replace import write_text
from ssae.artifact.store import content_hash
from ssae.explain import explain
from ssae.process.signals import Interrupted, launched_rank
from ssae.report.table import Metric, find, number

log = logging.getLogger(__name__)

FILE = "outcome.json"
ELSEWHERE = ("run_dir", "runs", "logger")
"""Keys that say where results and curves go, not what they are."""


def recorded(cfg: DictConfig, work: Callable[[], None]) -> float | None:
    """Do the work of one job of a sweep, unless it is done, and record how it ended.

    Args:
        cfg: the job's composed config. A job is done if the same config finished in its folder.
        work: writes metrics.json into the job's folder, if it measures something.

    Returns:
        the metric that cfg.minimise names, None if it was not measured.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    before = read(folder)
    outcome: dict[str, Any] = {
        "status": "running",
        "config": _config_hash(cfg),
        "verb": cfg.verb,
        "overrides": [o for o in hydra.overrides.task if not o.startswith("verb=")],
        "arm": cfg.get("arm"),
        "value": None,
        "seconds": None,
        "error": None,
        "host": socket.gethostname(),
        "job": _slurm_job(),
    }
    if before.get("status") == "finished" and before.get("config") == outcome["config"]:
        log.info("finished before, skipped: %s (to repeat it: rm -r %s)", folder.name, folder)
        return before["value"]
    _write(folder, outcome)
    start = time.perf_counter()
    try:
        work()
        outcome["value"] = metric(metrics(folder), cfg.minimise)
        outcome["status"] = "finished"
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        outcome["status"] = "interrupted" if interrupted else "failed"
        text = str(error) if isinstance(error, Interrupted) else explain(error)
        outcome["error"] = text or type(error).__name__
        if not interrupted:  # a sweeper shows it only after the last job
            log.error("failed: %s: %s", folder.name, outcome["error"])
        raise
    finally:
        outcome["seconds"] = round(time.perf_counter() - start, 1)
        _write(folder, outcome)
    return outcome["value"]


def metrics(folder: Path) -> list[Metric]:
    """Return the rows of a job's metrics.json; none if it measured nothing."""
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def metric(rows: list[Metric], name: str) -> float | None:
    """Return a number by its name, <split>/<name>/<sae>; None if it was not measured."""
    split, formula, sae = name.split("/")
    return number(find(rows, formula, split=split, sae=sae))


def read(folder: Path) -> dict[str, Any]:
    """Return a job's outcome; empty if there is none that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _slurm_job() -> str | None:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def _config_hash(cfg: DictConfig) -> str:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    kept = {key: value for key, value in values.items() if key not in ELSEWHERE}
    return content_hash([__version__, kept])


def _write(folder: Path, outcome: dict[str, Any]) -> None:
    if launched_rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json.dumps(outcome, indent=1, ensure_ascii=False))
