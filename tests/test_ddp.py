import csv
import dataclasses
import functools
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from ssae.artifact import Artifact
from ssae.objective.erm import ERM
from ssae.objective.term import TERM
from ssae.study import Study
from ssae.train import train

RANK = """
import pickle, sys
from pathlib import Path
import torch
from ssae.train import train

torch.set_num_threads(1)
study = pickle.loads(Path(sys.argv[1]).read_bytes())
for arm in study.arms:
    train(study, arm)
"""


def make_studies(make_study, folder: Path) -> dict[str, Study]:
    """The same study for one rank and for two; float64, so that only real differences show."""
    studies = {}
    for name, options in (("one", {"devices": 1}), ("two", {"devices": 2, "strategy": "ddp"})):
        study = make_study(folder / name)
        trainer = functools.partial(
            lightning.Trainer, accelerator="cpu", precision="64-true", log_every_n_steps=1,
            enable_progress_bar=False, **options,
        )  # fmt: skip
        first = study.arms["first"]
        arms = {
            "erm": dataclasses.replace(first, objective=ERM()),
            "term": dataclasses.replace(first, objective=TERM(tilt=3.0)),
            "from_term": dataclasses.replace(
                first, objective=TERM(tilt=-1.0), init_from="term", num_tokens=3 * 64
            ),
        }
        training = dataclasses.replace(study.training, dead_after_tokens=100)
        studies[name] = dataclasses.replace(
            study, arms=arms, arm="term", training=training, trainer=trainer,
            logger=functools.partial(CSVLogger, version=""),
        )  # fmt: skip
    return studies


def logged(study: Study, arm: str) -> list[dict[str, str]]:
    with (study.run_dir / "logs" / arm / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def latents(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "latents.safetensors")


@pytest.mark.slow
def test_two_ranks_train_what_one_rank_trains(make_study, tmp_path):
    studies = make_studies(make_study, tmp_path)
    (tmp_path / "study.pickle").write_bytes(pickle.dumps(studies["two"]))
    (tmp_path / "rank.py").write_text(RANK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(port), str(tmp_path / "rank.py"), str(tmp_path / "study.pickle"),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for arm in studies["one"].arms:
        alone = train(studies["one"], arm)
        together = train(studies["two"], arm)  # is there: two ranks could not start here
        found, expected = latents(together), latents(alone)
        for name in ("fire_counts", "tokens_since_fired"):
            assert torch.equal(found[name], expected[name]), (arm, name)
        for name, weight in load_file(alone.path / "sae.safetensors").items():
            found = load_file(together.path / "sae.safetensors")[name]
            torch.testing.assert_close(found, weight, rtol=1e-9, atol=1e-11, msg=f"{arm} {name}")
        rows = [logged(studies[name], arm) for name in ("one", "two")]
        assert len(rows[0]) == len(rows[1]) > 0
        for one, two in zip(*rows, strict=True):
            assert one.keys() == two.keys()
            for name in one:
                if name != "train/tokens_per_second" and one[name]:
                    expected = pytest.approx(float(one[name]), rel=1e-5)
                    assert float(two[name]) == expected, (arm, one["step"], name)
        if arm != "from_term":
            assert any(row["train/auxk"] for row in rows[0])  # dead latents took part


def test_ranks_that_lightning_would_have_to_start_itself_are_refused(make_study, tmp_path):
    study = make_studies(make_study, tmp_path)["two"]
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m ssae train"):
        train(study, "erm")
