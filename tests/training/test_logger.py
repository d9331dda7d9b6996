"""W&B: one run however often it is interrupted, and training that does not depend on a service."""

import functools
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

from tests.training.wandb_service import Service, records

KEY = "0123456789abcdef" * 2 + "01234567"

pytestmark = pytest.mark.slow


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.shutdown()


def online(service: Service) -> dict[str, str]:
    return {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}


def steps(history: list[dict]) -> list[int]:
    return [row["trainer/global_step"] for row in history if "train/loss" in row]


def test_an_interrupted_run_is_one_run_of_the_service(train_command, start, service, tmp_path):
    command = train_command(logger="wandb", generalist__num_tokens=str(64 * 1000))
    process = start(tmp_path, *command, **online(service))
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt")
    process.popen.send_signal(signal.SIGUSR1)
    assert process.end() == 75
    [run] = service.runs.values()
    logged = len(steps(run["history"]))
    assert 0 < logged < 1000 // 25
    assert start(tmp_path, *command, **online(service)).end() == 0
    [run] = service.runs.values()  # still the same one
    # Numbers are logged after the step that they are of, which counts from 0.
    assert steps(run["history"]) == list(range(24, 1000, 25))
    assert run["name"] == "generalist"
    assert run["group"].startswith("files/")
    assert run["config"]["seed"]["value"] == 0
    assert run["config"]["sae"]["value"]["k"] == 4
    assert run["exit"] == 0
    assert service.keys == {KEY}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_offline_pieces_are_one_run_when_they_are_uploaded(train_command, start, service, tmp_path):
    command = train_command(logger="wandb", generalist__num_tokens=str(64 * 1000))
    environment = {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}
    process = start(tmp_path, *command, **environment)
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt")
    process.popen.send_signal(signal.SIGUSR1)
    assert process.end() == 75
    assert start(tmp_path, *command, **environment).end() == 0
    pieces = sorted(tmp_path.glob("runs/*/*/logs/wandb/offline-run-*"), key=lambda path: path.name)
    assert len(pieces) == 2
    ids, numbers = set(), []
    for piece in pieces:
        [path] = piece.glob("*.wandb")
        kinds = [record.WhichOneof("record_type") for record in records(path)]
        assert "exit" in kinds  # complete
        ids |= {record.run.run_id for record in records(path) if record.HasField("run")}
        for record in records(path):
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            if "train/loss" in items:
                numbers.append(int(items["trainer/global_step"]))
    assert len(ids) == 1
    assert numbers == list(range(24, 1000, 25))
    for piece in pieces:
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", piece], env=os.environ | online(service),
            check=True, capture_output=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
    [run] = service.runs.values()
    assert steps(run["history"]) == numbers
    [artifact] = service.artifacts  # of the piece that reached the end
    assert artifact["artifactTypeName"] == "sae"
    [trained] = tmp_path.glob("artifacts/train/*/sae.safetensors")
    assert service.files["sae.safetensors"] == trained.read_bytes()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_a_service_that_cannot_be_reached_costs_the_curves_their_upload_and_nothing_else(
    train_command, start, tmp_path
):
    command = train_command(
        logger="wandb", generalist__num_tokens=str(64 * 50), logger__settings__init_timeout="3"
    )
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    process = start(tmp_path, *command, **environment, WANDB_MODE="online")
    assert process.end() == 0
    assert list(tmp_path.glob("artifacts/train/*/sae.safetensors"))
    [piece] = tmp_path.glob("runs/*/*/logs/wandb/offline-run-*/*.wandb")
    assert any(record.HasField("history") for record in records(piece))
    [log] = tmp_path.glob("runs/*/*/*.log")
    assert "W&B is not available" in log.read_text()
    assert KEY not in log.read_text()


def test_a_service_that_goes_away_during_training_does_not_end_it(
    train_command, start, service, tmp_path
):
    command = train_command(logger="wandb", logger__settings__finish_timeout="3")
    process = start(tmp_path, *command, **online(service))
    process.wait_for("artifacts/train/*.checkpoints/*.ckpt")
    service.shutdown()
    service.server_close()
    assert process.end() == 0
    assert list(tmp_path.glob("artifacts/train/*/sae.safetensors"))


def test_only_rank_zero_has_a_run(train_command, start, service, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = train_command(
        logger="wandb", generalist__num_tokens=str(64 * 50), trainer__devices="2"
    )
    assert start(tmp_path, *torchrun, *command, **online(service)).end() == 0
    assert len(service.runs) == 1
    assert len(list(tmp_path.glob("runs/*/*/logs/wandb/run-*"))) == 1


def test_the_run_of_an_agent_of_a_sweep_is_the_evaluation(monkeypatch, tmp_path):
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    from ssae.training import logger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "agents-run")
    monkeypatch.setenv("WANDB_SWEEP_ID", "the-sweep")

    make = functools.partial(WandbLogger, project="ssae", offline=True)
    study = types.SimpleNamespace(name="tiny", logger=make, run_dir=tmp_path)
    seen = {}
    for name, folder in (("specialist", tmp_path / "id"), ("evaluate", None)):
        made = logger.make_logger(study, name, {"seed": 0}, folder)
        seen[name] = made.experiment.id, made.experiment.sweep_id
        logger.finish(made)
        wandb.teardown()
    assert seen["evaluate"] == ("agents-run", "the-sweep")
    assert seen["specialist"][0] == (tmp_path / "id/wandb_id").read_text() != "agents-run"
    assert seen["specialist"][1] is None
