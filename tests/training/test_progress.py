import functools
import logging
import re

import lightning as L
import pytest

from ssae.train import train


@pytest.mark.parametrize(("seconds", "num_lines"), [((0, 60), 20), ((60, 60), 1), ((60, 0), 20)])
def test_a_log_gets_lines_with_rates_and_no_bar(
    make_study, tmp_path, caplog, monkeypatch, seconds, num_lines
):
    monkeypatch.setattr("ssae.training.progress.SECONDS", seconds)
    trainer = functools.partial(L.Trainer, accelerator="cpu", devices=1)
    with caplog.at_level(logging.INFO, "ssae"):
        train(make_study(tmp_path, trainer=trainer), "first")
    lines = [r.message for r in caplog.records if r.name == "ssae.training.progress"]
    assert len(lines) == num_lines
    assert re.fullmatch(r"first: step 20 of 20, [\d.e+]+ steps/s, 0:00 left.*", lines[-1])
