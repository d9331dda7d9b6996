"""Every YAML of conf/ composes and instantiates, and conf/ repeats the names of ssae/."""

import importlib
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ssae.cli import CONF, study_of
from ssae.study import Study

# What a choice leaves to the user.
NEEDED = {
    "corpus=files": ["corpus.pool=pool.jsonl", "corpus.seeds=seeds.jsonl"],
    "corpus=hub": [
        f"corpus.{split}.{key}={value}"
        for split in ("pool", "seeds", "subdomain_test", "general_test")
        for key, value in (("path", "a/b"), ("num_documents", 10))
    ],
    "language_model=any": ["language_model.name=a/b"],
    "experiment=files": [
        "corpus.pool=pool.jsonl", "corpus.seeds=seeds.jsonl", "language_model.name=a/b",
    ],
    "corpus=labelled_seeds": ["corpus.pool=pool.jsonl"],
    "labelled=files": ["labelled.path=bios.jsonl"],
    "experiment=labelled_files": [
        "corpus.pool=pool.jsonl", "labelled.path=bios.jsonl", "language_model.name=a/b",
    ],
    "retriever/embedder=hf": ["retriever.embedder.name=a/b"],
}  # fmt: skip

# In the order of conf/config.yaml.
ARMS = {
    "experiment=selections": [
        "generalist", "control", "bm25", "dense", "hybrid", "bm25_tracin", "dense_tracin",
    ],
    "experiment=objectives": [
        "generalist", "control", "specialist_erm", "specialist", "token_tilt", "type_tilt",
        "type_balanced", "balanced", "cvar", "group_dro", "mixed",
    ],
}  # fmt: skip

CHOICES = [
    f"{path.relative_to(CONF).parent}={path.stem}" for path in sorted(CONF.rglob("*/*.yaml"))
]


def compose(overrides: list[str], run_dir: Path) -> Study:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*overrides, f"run_dir={run_dir}"])
    return study_of(cfg)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_makes_a_study(choice: str, tmp_path: Path):
    study = compose([choice, *NEEDED.get(choice, [])], tmp_path)
    expected = ARMS.get(choice, ["generalist", "control", "specialist_erm", "specialist"])
    assert list(study.arms) == expected


def test_an_sae_of_every_architecture_is_built_from_its_yaml(tmp_path: Path):
    for choice in sorted((CONF / "sae").glob("*.yaml")):
        groups = ["sae.group_sizes=[32,96]"] if choice.stem == "matryoshka" else []
        sae = compose([f"sae={choice.stem}", "sae.d_sae=128", *groups], tmp_path).sae(d_in=8)
        assert sae.architecture == choice.stem
        assert sae.hyperparameters["d_in"] == 8


def test_every_target_exists():
    for path in CONF.rglob("*.yaml"):
        targets = [
            line.split("_target_:")[1].strip(" {},").split(",")[0].split(" ")[0]
            for line in path.read_text().splitlines()
            if "_target_:" in line
        ]
        for target in targets:
            module, name = target.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), name), f"{path}: {target}"


def test_an_override_reaches_the_arm_it_steers(tmp_path: Path):
    study = compose(["objective.tilt=2", "budget_tokens=77", "seed=3"], tmp_path)
    assert study.arms["specialist"].objective.tilt == 2  # pyright: ignore
    assert study.arms["control"].budget_tokens == 77
    assert study.arms["generalist"].retriever.seed == 3  # pyright: ignore
    assert study.seed == 3


def test_erm_and_term_specialists_share_everything_but_the_objective(tmp_path: Path):
    arms = compose([], tmp_path).arms
    assert arms["specialist"].retriever == arms["specialist_erm"].retriever
    assert arms["specialist"].objective != arms["specialist_erm"].objective
    assert arms["control"].num_tokens == arms["specialist"].num_tokens
    assert arms["control"].budget_tokens == arms["specialist"].budget_tokens


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("context_length=1", "context_length must be at least 2"),
        ("budget_tokens=0", "budget_tokens must be at least 1"),
        ("training.decay_share=2", "decay_share must lie in"),
        ("arm=nobody", "arm must be one of generalist, .*, got 'nobody'; set arm=generalist$"),
        ("specialist.lr=-1", "lr must be positive"),
        (
            "specialist.general_share=1",
            r"general_share must lie in \[0, 1\), got 1; set .*specialist.general_share=0.4",
        ),
        ("compare.random=null", "the retriever of an arm must be one, got None; .*compare.random"),
        ("language_model.dtype=int8", "dtype must be one of .*; set language_model.dtype=auto"),
        (
            "language_model.device=foo",
            "device must be auto .*'foo'; set language_model.device=auto",
        ),
        (
            "language_model.device_map=foo",
            "device_map must be null, auto, balanced.*set language_model.device_map=auto",
        ),
        (
            "packing=tight",
            "packing must be one of packed, documents, got 'tight'; set packing=packed$",
        ),
        ("bos=x", "bos must be one of row, document, none, got 'x'; set bos=row$"),
        ("shard_tokens=0", "shard_tokens must be at least 1, got 0; set shard_tokens=65536$"),
        ("harvest_batch_tokens=0", "at least 1, got 0; set harvest_batch_tokens=2048$"),
        ("evaluation_tokens=-1", "at least 1, got -1; set evaluation_tokens=100000$"),
        ("num_bootstraps=1", "at least 2, got 1; set num_bootstraps=1000$"),
        ("training.warmup_steps=-1", "not be negative, got -1; set training.warmup_steps=100"),
        ("training.screening=no", "auto or exact, got 'no'; set training.screening=auto"),
        ("seed=0.5", r"whole number, got 0.5; set seed=<a whole number>"),
        (
            "retriever=random seed=0.5",
            "seed must be a whole number, got 0.5; set seed=<a whole number>$",
        ),
        ("shard_tokens=1e5", "shard_tokens must be a whole number, .*; set shard_tokens=100000$"),
        ("corpus.test_share=1", "test_share must lie strictly between"),
        ("objective.tilt=inf", r"objective.tilt must lie in \[-1e\+100, 1e\+100\], got inf; set"),
        ("objective.tilt=abc", "objective.tilt must be a number, got 'abc'; set objective.tilt=5"),
        (
            "specialist.general_share=abc",
            "general_share must be a number, got 'abc'; set general_share of that arm, e.g. "
            "specialist.general_share=0.4",
        ),
        (
            "budget_tokens=0",
            "budget_tokens must be at least 1, got 0; .* e.g. budget_tokens=250_000",
        ),
        ("trainer.precision=foo", "Lightning refuses the options of trainer.*: .*foo"),
        ("trainer.strategy=foo", "Lightning refuses the options of trainer.*: .*foo"),
        ("trainer.gradient_clip_val=abc", "Lightning refuses the options of trainer.*: .*abc"),
        ("trainer.log_every_n_steps=0", "at least 1, got 0; set trainer.log_every_n_steps=25"),
        ("trainer.log_every_n_steps=x", "at least 1, got 'x'; set trainer.log_every_n_steps=25"),
        ("+training.optimizer.foo=1", "training.optimizer cannot be made: .*foo"),
        ("context_length=many", "context_length must be a whole number, got 'many'"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_runs(
    override: str, rule: str, tmp_path: Path
):
    with pytest.raises(Exception, match=rule):
        compose(override.split(), tmp_path)


@pytest.mark.parametrize("launcher", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_ranks_that_the_trainer_does_not_know_of_are_refused(
    tmp_path: Path, monkeypatch, launcher: str
):
    """Each would train the whole run by itself."""
    monkeypatch.setenv(launcher, "2")
    with pytest.raises(ValueError, match=r"2 ranks were started .* = 1: set trainer\.devices="):
        compose([], tmp_path)


def test_a_window_that_is_too_small_for_a_stream_is_refused_with_one_that_is_taken(tmp_path: Path):
    with pytest.raises(ValueError, match=r"8 \* 256 = 2048\), got 20: .*window_tokens=131072$"):
        compose(["activation=stream", "activation.window_tokens=20"], tmp_path)
    compose(["activation=stream", "activation.window_tokens=131072"], tmp_path)


def test_the_config_of_a_run_can_be_read_back(tmp_path: Path):
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [f"run_dir={tmp_path}"])
    again = OmegaConf.create(OmegaConf.to_yaml(cfg))
    assert study_of(again).arms == study_of(cfg).arms  # pyright: ignore
