import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from ssae.sweep.jobs import read_jobs
from ssae.sweep.setting import settings_of
from ssae.sweep.summary import summarise


def job(folder: Path, number: int, fvu: float | None, *overrides: str, **outcome: object) -> None:
    path = folder / f"job{number}"
    path.mkdir(parents=True)
    record = {
        "status": "finished", "config": "0", "verb": "run", "overrides": ["sae=topk", *overrides],
        "arm": "specialist", "value": fvu, "seconds": 1.5, "error": None, "host": "n1", "job": "7",
    } | outcome  # fmt: skip
    (path / "outcome.json").write_text(json.dumps(record))
    if fvu is not None:
        rows = [
            {"name": name, "value": value, "sae": "specialist", "split": split, "band": "all"}
            for name, value, split in (
                ("fvu", fvu, "subdomain_test"), ("l0", 8.0 + number, "subdomain_test"),
                ("perplexity_spliced", 10 * fvu, "subdomain_test"),
                ("perplexity_spliced", 20.0, "general_test"),
            )
        ]  # fmt: skip
        (path / "metrics.json").write_text(json.dumps(rows))


def printed(folder: Path, num_jobs: int = 0) -> str:
    buffer = io.StringIO()
    summarise(folder, num_jobs, Console(file=buffer, width=120))
    return buffer.getvalue()


def test_jobs_are_averaged_over_seeds_with_an_interval(tmp_path):
    values = {"0": (0.1, 0.2, 0.4), "5": (0.3,)}
    number = 0
    for tilt, seeds in values.items():
        for seed, fvu in enumerate(seeds):
            job(tmp_path, number, fvu, f"objective.tilt={tilt}", f"seed={seed}")
            number += 1
    first, second = settings_of(read_jobs(tmp_path))
    assert (first.name, second.name) == ("tilt=0", "tilt=5")
    mean, half = first.mean(("fvu", "subdomain_test"))
    assert mean == pytest.approx(np.mean(values["0"]))
    interval = stats.t.interval(0.95, 2, mean, stats.sem(values["0"]))
    assert half == pytest.approx((interval[1] - interval[0]) / 2)
    assert second.mean(("fvu", "subdomain_test")) == (0.3, None)
    assert second.mean(("fvu", "general_test")) == (None, None)
    text = printed(tmp_path)
    assert "4 of 4 jobs finished" in text
    assert "0.2333 ±0.38" in text
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "2", "0"]
    assert "sae" not in rows[0]  # all jobs have it
    page = (tmp_path / "summary.html").read_text()
    assert page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_did_not_finish_is_named_with_the_reason(tmp_path):
    job(tmp_path, 0, 0.5, "sae.k=4")
    job(tmp_path, 1, None, "sae.k=<b>65", status="failed", error="k must be <= 64 & more")
    job(tmp_path, 2, None, "sae.k=8", status="running", seconds=None)
    (tmp_path / "job3").mkdir()
    (tmp_path / "job3/outcome.json").write_text('{"status": "fin')  # torn
    text = printed(tmp_path, 5)
    assert "1 of 5 jobs finished" in text
    assert "failed: sae.k=<b>65: k must be <= 64 & more" in text
    assert "running: sae.k=8: runs, or was killed (job 7 on n1)" in text
    page = (tmp_path / "summary.html").read_text()
    assert "sae.k=&lt;b&gt;65" in page
    assert "<b>65" not in page


def test_a_folder_without_jobs_gets_no_summary(tmp_path):
    assert printed(tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_jobs_of_two_verbs_are_no_seeds_of_one_setting(tmp_path):
    job(tmp_path, 0, 0.5, "seed=0")
    job(tmp_path, 1, 0.5, "seed=0", verb="evaluate")
    assert [setting.name for setting in settings_of(read_jobs(tmp_path))] == [
        "verb=evaluate", "verb=run"
    ]  # fmt: skip


def test_settings_that_only_differ_where_names_are_cut_keep_their_names(tmp_path):
    for number, lr in enumerate(("0.00100001", "0.00100002")):
        job(tmp_path, number, 0.5, f"specialist.lr={lr}")
    names = [setting.name for setting in settings_of(read_jobs(tmp_path))]
    assert names == ["specialist.lr=0.00100001", "specialist.lr=0.00100002"]


def write_metrics(folder: Path, number: int, rows: list[tuple]) -> None:
    keys = ("sae", "name", "split", "value", "reference")
    found = [dict(zip(keys, row, strict=False)) | {"band": "all"} for row in rows]
    (folder / f"job{number}" / "metrics.json").write_text(json.dumps(found))


def test_arms_have_their_means_and_differences_are_those_from_the_generalist(tmp_path):
    split = "subdomain_test"
    for seed, fvu in enumerate((0.2, 0.4)):
        job(tmp_path, seed, fvu, f"seed={seed}")
        rows: list[tuple] = []
        for arm, reference in (("generalist", "specialist"), ("specialist", "generalist")):
            sign = 1 if arm == "generalist" else -1
            rows += [
                (arm, "fvu", split, fvu + 0.1 * sign),
                (arm, "fvu_difference", split, 7.0 * sign, "control"),
                (arm, "fvu_difference", split, 0.2 * sign, reference),
            ]
        write_metrics(tmp_path, seed, rows)
    text = printed(tmp_path)
    assert "generalist 0.4000 ±1.3" in text
    assert "specialist 0.2000 ±1.3" in text
    page = (tmp_path / "summary.html").read_text()
    assert page.count("0.4000 ±1.3") == 1
    with (tmp_path / "arms.csv").open(newline="") as file:
        found = {(row["seed"], row["arm"]): row for row in csv.DictReader(file)}
    assert float(found["0", "specialist"][f"{split}/fvu_difference"]) == -0.2
    assert found["0", "generalist"][f"{split}/fvu_difference"] == ""


def test_jobs_on_other_text_are_not_ranked(tmp_path):
    for number, pool in enumerate(("a.txt", "b.txt")):
        job(tmp_path, number, 0.1, f"corpus.pool={pool}")
        hydra = tmp_path / f"job{number}" / ".hydra"
        hydra.mkdir()
        (hydra / "config.yaml").write_text(f"corpus: {{pool: {pool}}}\n")
    printed(tmp_path)
    assert "Pareto front" not in (tmp_path / "summary.html").read_text()


def test_a_key_is_not_cut_to_one_that_all_jobs_have(tmp_path):
    for number, tokens in enumerate(("100", "200")):
        job(tmp_path, number, 0.5, "budget_tokens=50", f"generalist.budget_tokens={tokens}")
    names = [setting.name for setting in settings_of(read_jobs(tmp_path))]
    assert names == ["generalist.budget_tokens=100", "generalist.budget_tokens=200"]


def test_a_sweep_of_shift_is_averaged_row_by_row_of_its_table(tmp_path):
    for seed, worst in enumerate((0.4, 0.5, 0.6)):
        words = ["shift.min_selectivity=0.7", f"seed={seed}"]
        job(tmp_path, seed, None, *words, verb="shift", value=None)
        rows = [
            {
                "name": "worst_group_accuracy", "value": worst - place / 10, "sae": name,
                "split": "labelled", "band": "all",
            }
            for place, name in enumerate(("original", "shift_specialist"))
        ]  # fmt: skip
        (tmp_path / f"job{seed}/metrics.json").write_text(json.dumps(rows))
    shown = printed(tmp_path)
    assert "worst" in shown
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert "worst group" in page
    with (tmp_path / "arms.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert {row["arm"] for row in found} == {"original", "shift_specialist"}
    assert "0.4000" in shown + page  # the mean of shift_specialist
