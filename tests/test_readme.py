"""Every command and every Python snippet of README.md."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from ssae.bench import data, e2e, step
from ssae.cli import CONF, VERBS
from ssae.sae.relu import ReLUSAE
from ssae.sweep.report import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)
SSAE = [line for line in LINES if re.match(r"(ssae|torchrun .*-m ssae) ", line)]


def test_every_kind_of_command_is_covered():
    others = [line for line in LINES if line not in SSAE]
    # Those of slurm/ are run in tests/slurm.
    known = ("make ", "pip install ", "python -m ssae.bench ", "slurm/submit ", "slurm/sweep ")
    known += ("python -m ssae.theory",)  # run in tests/theory
    assert all(line.startswith(known) for line in others), others
    assert {"run", "retrieve", "train", "evaluate"} <= {shlex.split(line)[1] for line in SSAE}


REPORTS = [line for line in SSAE if line.startswith("ssae report ")]


@pytest.mark.parametrize("line", REPORTS)
def test_every_ssae_report_is_understood(line: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[2:]
    folders = [word for word in words if "=" not in word]
    for folder in folders:
        Path(folder).mkdir(parents=True)
    assert parse(words).folders == [Path(folder) for folder in folders]


@pytest.mark.parametrize(
    "line", [line for line in SSAE if line != "ssae --help" and line not in REPORTS]
)
def test_every_ssae_command_composes(line: str, tmp_path: Path):
    words = shlex.split(line)
    verb, *rest = words[words.index("ssae") + 1 :]
    assert verb in VERBS
    flags = [word for word in rest if word.startswith("-")]
    assert set(flags) <= {"-m", "--cfg"}
    # A sweep is one composition per value; the first stands for all.
    rest = [word for word in rest if "interval(" not in word]
    overrides = [re.sub(r"=([^\[{(,]*),.*", r"=\1", word) for word in rest if "=" in word]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose("config", [*overrides, f"verb={verb}"], return_hydra_config=True)


@pytest.mark.parametrize(
    "line", [line for line in LINES if line.startswith("python -m ssae.bench")]
)
def test_every_bench_command_parses(line: str):
    parser = argparse.ArgumentParser()
    _, _, _, name, *arguments = shlex.split(line)
    {"step": step, "e2e": e2e, "data": data}[name].add_arguments(parser)
    parser.parse_args(arguments)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("make ")])
def test_every_make_target_exists(line: str):
    words = line.split()
    subprocess.run(["make", "-n", words[1]], cwd=ROOT, check=True, capture_output=True)


def test_the_python_snippet_does_what_its_comments_say():
    names: dict = {}
    exec(compile(SNIPPETS[0], "README.md", "exec"), names)
    assert 0.4 < names["risk"].item() < 0.9
    assert names["weights"].sum().item() == pytest.approx(1)


def test_the_snippet_of_the_theory_runs(monkeypatch):
    sae = ReLUSAE(8, 16, l1_coefficient=1.0, auxk_coefficient=0.0, k_aux=1)
    monkeypatch.setattr("ssae.sae.files.load", lambda path: sae)
    names: dict = {"x": 3 * torch.rand(30, 8, generator=torch.Generator().manual_seed(0))}
    *lines, last = SNIPPETS[1].strip().splitlines()
    exec(compile("\n".join(lines), "README.md", "exec"), names)
    scale = eval(last, names)
    assert 0 < scale.wide_limit <= scale.optimal_codes <= scale.sae


def test_the_tree_of_the_readme_is_the_tree():
    [tree] = re.findall(r"```\nssae/\n(.*?)```", README, re.S)
    named = set(re.findall(r"^  ([\w.]+)/? ", tree, re.M))
    there = {
        path.name
        for path in (ROOT / "ssae").iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    }
    assert named == there


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
