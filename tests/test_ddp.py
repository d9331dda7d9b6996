import csv
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from ssae.objective.cvar import CVaR
from ssae.objective.erm import ERM
from ssae.objective.group_dro import GroupDRO
from ssae.objective.term import TERM
from ssae.study import Study
from ssae.train import train

SGD = {"optimizer": torch.optim.SGD}  # its steps are the gradients, scale and all


@pytest.fixture
def studies(make_study, all_saes, tmp_path):
    """Return a function (folder, number of ranks) -> {name: study}.

    In float64, so that only real differences show.
    """
    saes = all_saes(64, 4, [16, 48])
    return lambda name, num_ranks: make_studies(make_study, saes, tmp_path / name, num_ranks)


def make_studies(
    make_study, saes: dict[str, functools.partial], folder: Path, num_ranks: int
) -> dict[str, Study]:
    base = make_study(folder)
    first = dataclasses.replace(base.arms["first"], num_tokens=12 * 64)
    erm = dataclasses.replace(first, objective=ERM())
    term = dataclasses.replace(first, objective=TERM(tilt=3.0))
    steep = dataclasses.replace(term, lr=0.1, num_tokens=10 * 64)
    then = dataclasses.replace(term, objective=TERM(tilt=-1.0), init_from="term", num_tokens=448)

    def study(
        name: str, arms: dict[str, Any], training: Any = (), trainer: Any = (), sae: str = "topk"
    ) -> Study:
        options = {"precision": "64-true", "devices": num_ranks, **dict(trainer)}
        if num_ranks > 1:
            options["strategy"] = "ddp"
        settings = dict(training)
        if "optimizer" in settings:
            settings["optimizer"] = functools.partial(settings["optimizer"])
        return dataclasses.replace(
            base, name=name, run_dir=folder / name, sae=saes[sae], arms=arms, arm=next(iter(arms)),
            training=dataclasses.replace(base.training, dead_after_tokens=100, **settings),
            trainer=functools.partial(
                lightning.Trainer, accelerator="cpu", log_every_n_steps=1,
                enable_progress_bar=False, **options,
            ),
            logger=functools.partial(CSVLogger, version=""),
        )  # fmt: skip

    groups = [
        ("types", TERM(tilt=3.0, level="token_type", balance=0.5)),
        ("running", TERM(tilt=3.0, level="document", rho=0.2)),
        ("cvar", CVaR(share=0.2, level="frequency_band", balance=1)),
        ("dro", GroupDRO(step_size=0.3, level="document")),
    ]
    starts = {
        "fine_tune": then,
        "recycle": dataclasses.replace(then, start="recycle"),
        "residual": dataclasses.replace(then, start="residual"),
    }
    few = dataclasses.replace(erm, budget_tokens=40, num_tokens=3 * 64 + 1)
    studies = [
        study("topk", {"erm": erm, "term": term, **starts}, {"resample_every_steps": 7}),
        study("groups", {name: dataclasses.replace(first, objective=o) for name, o in groups}),
        study("batchtopk", {"erm": erm, "term": term}, sae="batchtopk"),
        study("matryoshka", {"erm": erm}, sae="matryoshka"),
        study("jumprelu", {"term": term}, sae="jumprelu"),
        study("relu", {"term": term}, sae="relu"),
        study("gated", {"term": term}, sae="gated"),
        study("gradients", {"term": steep}, SGD),
        study("clipped", {"term": steep}, SGD, {"gradient_clip_val": 0.05}),
        study(
            "clamped", {"term": steep}, SGD,
            {"gradient_clip_val": 0.002, "gradient_clip_algorithm": "value"},
        ),
        # Less text than a batch, in one shard: epochs end inside of batches, a rank harvests none.
        study("few", {"erm": few, "fewer": dataclasses.replace(few, num_tokens=10)}),
        study("uneven", {"erm": erm}, {"batch_size_tokens": 66}),
    ]  # fmt: skip
    return {study.name: study for study in studies}


def logged(study: Study, arm: str) -> list[dict[str, str]]:
    with (study.run_dir / "logs" / arm / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def compare(alone: Study, together: Study, arm: str) -> list[dict[str, str]]:
    """Compare all that training leaves; return what was logged."""
    where = (alone.name, arm)
    expected = train(alone, arm)
    before = sorted((together.artifacts / "train").iterdir())
    # One rank finds what many have trained: how many there were does not enter its name.
    found = train(dataclasses.replace(alone, artifacts=together.artifacts), arm)
    assert sorted((together.artifacts / "train").iterdir()) == before
    counts = load_file(found.path / "latents.safetensors")
    for name, count in load_file(expected.path / "latents.safetensors").items():
        assert torch.equal(counts[name], count), (*where, name)
    weights = load_file(found.path / "sae.safetensors")
    for name, weight in load_file(expected.path / "sae.safetensors").items():
        torch.testing.assert_close(
            weights[name], weight, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{where} {n}: {m}"
        )
    rows, others = logged(alone, arm), logged(together, arm)
    assert len(rows) == len(others) > 0
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name in set(row) - {"train/tokens_per_second"}:
            close = pytest.approx(float(row[name]), rel=1e-6) if row[name] else ""
            assert (float(other[name]) if other[name] else "") == close, (*where, row["step"], name)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_train_what_one_rank_trains(studies, launch, num_ranks):
    alone, together = studies("alone", 1), studies("together", num_ranks)
    launch(num_ranks, [(s, arm, None) for s in together.values() for arm in s.arms])
    uneven = together.pop("uneven")
    for name in together:
        rows = {arm: compare(alone[name], together[name], arm) for arm in alone[name].arms}
        if name == "topk":  # what was to be compared did take part
            assert any(row["train/auxk"] for row in rows["term"])
            assert any(float(row["train/resampled"]) for row in rows["term"])
            assert all(float(row["train/effective_sample_size"]) < 1 for row in rows["term"])
    for rank in range(num_ranks):
        notes = json.loads((uneven.run_dir / f"erm_rank{rank}.json").read_text())
        said = notes.get("error", "none")
        assert (num_ranks == 2) == (said == "none")
        assert num_ranks == 2 or "(66) must be a multiple of the number of ranks (4)" in said


def test_ranks_that_lightning_would_have_to_start_itself_are_refused(studies):
    study = studies("together", 2)["relu"]
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m ssae <verb>"):
        train(study, "term")
