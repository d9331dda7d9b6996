"""slurm/wandb_sweep.yaml, expanded as W&B does it, reports to the run that the agent made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from tests.training.wandb_service import Service

SWEEP = yaml.safe_load((Path(__file__).parents[2] / "slurm/wandb_sweep.yaml").read_text())
KEY = "0123456789abcdef" * 2 + "01234567"


def command(values: dict[str, object]) -> list[str]:
    """What the agent runs for one choice of the parameters."""
    args = {"args": {name: {"value": value} for name, value in values.items()}}
    words = utils.create_sweep_command_args(args) | {"env": ["/usr/bin/env"]}
    expanded: list[str] = []
    for word in utils.create_sweep_command(SWEEP["command"]):
        expanded += words[word[2:-1]] if word.startswith("${") else [word]
    return expanded


def test_the_command_is_that_of_the_command_line():
    assert command({"objective.tilt": 5, "seed": 1}) == [
        "/usr/bin/env", "ssae", "run", "logger=wandb", "objective.tilt=5", "seed=1"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_agents_run_gets_the_metric_and_those_of_the_arms_are_apart(run_overrides, tmp_path):
    service = Service()
    own = dict(word.split("=", 1) for word in run_overrides)
    words = command({"objective.tilt": 5, "specialist.lr": 0.001, "seed": 1} | own)
    parameters = tmp_path / "config.yaml"
    parameters.write_text("wandb_version: 1\nobjective.tilt:\n  value: 5\n")
    agent = {
        "WANDB_RUN_ID": "agentsrun", "WANDB_SWEEP_ID": "thesweep", "WANDB_MODE": "online",
        "WANDB_SWEEP_PARAM_PATH": str(parameters), "WANDB_BASE_URL": service.url,
        "WANDB_API_KEY": KEY, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | agent, capture_output=True, text=True, timeout=300
    )
    service.shutdown()
    assert done.returncode == 0, done.stderr
    names = {run["name"]: name for name, run in service.runs.items()}
    assert set(names) == {"generalist", "control", "specialist_erm", "specialist", "evaluate"}
    assert names["evaluate"] == "agentsrun"
    reported = service.runs["agentsrun"]
    assert {run["sweep"] for run in service.runs.values() if run is not reported} == {None}
    assert reported["sweep"] == "thesweep"
    assert reported["config"]["objective.tilt"]["value"] == 5
    assert SWEEP["metric"]["name"] in reported["history"][-1]
    collections = {artifact["artifactCollectionName"] for artifact in service.artifacts}
    assert {"files-generalist", "files-specialist"} <= collections
    assert len({run["group"] for run in service.runs.values()}) == 1
