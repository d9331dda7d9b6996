"""Names of folders: those of a run, a sweep and its jobs."""

import importlib
import re

import pytest
from omegaconf import OmegaConf

from ssae import config


def test_a_run_in_a_job_is_named_after_it_and_another_after_the_time(monkeypatch):
    monkeypatch.setenv("SSAE_RUN", "job_7_2")
    assert config.run_id() == "job_7_2"
    monkeypatch.delenv("SSAE_RUN")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", config.run_id())


def test_the_same_overrides_in_any_order_are_the_same_sweep():
    one = config.sweep_dir("runs", "tilts", ["seed=0,1", "verb=run"])
    assert re.fullmatch(r"runs/tilts/sweep_\w{8}", one)
    assert one == config.sweep_dir("runs", "tilts", ["verb=run", "seed=0,1"])
    assert one != config.sweep_dir("runs", "tilts", ["verb=run", "seed=0,1,2"])
    assert one != config.sweep_dir("runs", "tilts", ["verb=train", "seed=0,1"])


@pytest.mark.parametrize(
    "override",
    [
        "seed=range(3)", "corpus.pool=/a/b.jsonl,/c/d.jsonl", "hookpoints=[a,b],[c]",
        "+trainer.profiler=simple,advanced", "specialist.lr=tag(log, interval(1e-4, 1e-2))",
        "objective=erm,term", "retriever@compare.bm25=bm25,random",
    ],
)  # fmt: skip
def test_what_is_swept_is_known_whatever_it_looks_like(override):
    key = override.split("=")[0]
    assert config.swept([override, "seed=0", "hookpoints=[x,y]", "~logger"]) == [key]


@pytest.mark.parametrize(
    "value", ["/a/b.jsonl", "[gpt_neox.layers.1, x]", "ü ñ", "..", "a" * 300, "{a: 1}", ""]
)
def test_a_jobs_folder_is_one_folder_with_a_name_that_any_system_takes(value):
    name = config.job_id([f"key={value}", "verb=run"], ["key"])
    assert re.fullmatch(r"[\w.,=+-]{10,120}", name)
    assert "/" not in name
    assert name != config.job_id([f"key={value}x", "verb=run"], ["key"])


def test_the_resolvers_are_those_of_the_configs():
    importlib.import_module("ssae.cli")  # which registers them
    text = "".join(path.read_text() for path in config.CONF.rglob("*.yaml"))
    used = set(re.findall(r"\$\{(\w+):", text)) - {"hydra", "oc"}
    assert all(OmegaConf.has_resolver(name) for name in used), used
    assert {"run_id", "sweep_dir", "swept", "job_id", "group", "bundled", "wandb_offline"} == used
