"""Which numbers of an evaluation the loggers get."""

import csv
import functools
import types
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

from ssae.training import results
from ssae.training.results import all_numbers, headline_numbers, log_evaluation


def row(name: str, split: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "split": split, "sae": "mine", "band": "all", "value": value} | more


ROWS = [
    row("fvu", "subdomain_test", 0.5),
    row("fvu", "subdomain_test", 0.9, band="< 1"),
    row("fvu", "subdomain_test", 0.6, sae="other"),
    row("fvu_difference", "subdomain_test", -0.1, reference="other"),
    row("tail_recall", "subdomain_test", 0.25),
    row("tail_error", "subdomain_test", None),
    row("precision", "pool", 0.75, sae=None, retriever="dense"),
]


def test_the_headline_is_that_of_the_studied_arm_and_only_what_was_measured():
    assert headline_numbers(ROWS, "mine") == {"val/fvu_subdomain": 0.5, "val/tail_recall": 0.25}
    assert headline_numbers(ROWS, "other") == {"val/fvu_subdomain": 0.6}


def test_every_number_over_all_bands_has_a_key():
    assert all_numbers(ROWS) == {
        "subdomain_test/fvu/mine": 0.5,
        "subdomain_test/fvu/other": 0.6,
        "subdomain_test/tail_recall/mine": 0.25,
        "pool/precision/dense": 0.75,
    }


def test_a_logger_without_tables_gets_the_numbers(tmp_path: Path, monkeypatch: Any):
    study: Any = types.SimpleNamespace(
        name="tiny", arm="mine", logger=functools.partial(CSVLogger), run_dir=tmp_path
    )
    monkeypatch.setattr(results, "study_config", lambda study: {})
    log_evaluation(study, ROWS, {"anything": [object()]}, None)
    [path] = tmp_path.glob("logs/evaluate/*/metrics.csv")
    with path.open(newline="") as file:
        [logged] = list(csv.DictReader(file))
    assert float(logged["val/tail_recall"]) == 0.25
    assert float(logged["subdomain_test/fvu/other"]) == 0.6
