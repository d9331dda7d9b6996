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
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.topk import TopKSAE
from ssae.study import Study
from ssae.train import train

RANK = """
import pickle, sys
from pathlib import Path
import torch
from ssae.train import train

torch.set_num_threads(1)
for study in pickle.loads(Path(sys.argv[1]).read_bytes()):
    for arm in study.arms:
        train(study, arm)
"""

COMMON = {"d_sae": 64, "auxk_coefficient": 1 / 32, "k_aux": 8}
OTHER_SAES = {  # all that ranks must agree on: a threshold of the global batch, its mean l0
    "batchtopk": functools.partial(BatchTopKSAE, k=4, **COMMON),
    "matryoshka": functools.partial(MatryoshkaSAE, k=4, group_sizes=[16, 48], **COMMON),
    "jumprelu": functools.partial(
        JumpReLUSAE, l0_coefficient=1.0, target_l0=4.0, bandwidth=1.0, initial_threshold=1.0,
        threshold_lr=1e-2, **COMMON,
    ),
}  # fmt: skip


def make_studies(make_study, folder: Path) -> dict[str, list[Study]]:
    """The same studies for one rank and for two; float64, so that only real differences show."""
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
        training = dataclasses.replace(
            study.training, dead_after_tokens=100, resample_every_steps=7
        )
        study = dataclasses.replace(
            study, arms=arms, arm="term", training=training, trainer=trainer,
            logger=functools.partial(CSVLogger, version=""),
        )  # fmt: skip
        studies[name] = [study] + [
            dataclasses.replace(
                study, sae=sae, arms={"erm": arms["erm"]}, arm="erm", run_dir=folder / name / kind
            )
            for kind, sae in OTHER_SAES.items()
        ]
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
    for one, two in zip(studies["one"], studies["two"], strict=True):
        for arm in one.arms:
            compare(one, two, arm)


def compare(one: Study, two: Study, arm: str) -> None:
    alone = train(one, arm)
    together = train(two, arm)  # is there: two ranks could not start here
    kind = alone.path.joinpath("sae.json").read_text()[:60]
    found, expected = latents(together), latents(alone)
    for name in ("fire_counts", "tokens_since_fired", "recycled"):
        assert torch.equal(found[name], expected[name]), (kind, arm, name)
    weights = load_file(together.path / "sae.safetensors")
    for name, weight in load_file(alone.path / "sae.safetensors").items():
        where = f"{kind} {arm} {name}"
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-11, msg=where)
    rows = [logged(study, arm) for study in (one, two)]
    assert len(rows[0]) == len(rows[1]) > 0
    for first, second in zip(*rows, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if name != "train/tokens_per_second" and first[name]:
                expected = pytest.approx(float(first[name]), rel=1e-5)
                assert float(second[name]) == expected, (kind, arm, first["step"], name)
    if one.sae.func is TopKSAE and arm != "from_term":
        assert any(row["train/auxk"] for row in rows[0])  # dead latents took part
        assert any(float(row["train/resampled"]) for row in rows[0])


def test_ranks_that_lightning_would_have_to_start_itself_are_refused(make_study, tmp_path):
    study = make_studies(make_study, tmp_path)["two"][0]
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m ssae train"):
        train(study, "erm")
