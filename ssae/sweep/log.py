"""A report on W&B: the page, its figures, and a table of all jobs and arms."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from ssae.config import CONF
from ssae.sweep.jobs import Job
from ssae.sweep.rows import arm_rows
from ssae.sweep.setting import settings_of
from ssae.sweep.summary import curve_figures, setting_figures
from ssae.training.logger import finish, make_logger
from ssae.training.media import as_html, as_table, figure_key, log_media


@dataclasses.dataclass(frozen=True)
class LoggedReport:
    """What a logger needs to know of a report (training/logger.py)."""

    name: str
    logger: functools.partial[Any] | None
    run_dir: Path


def log_report(overrides: Sequence[str], title: str, jobs: Sequence[Job], page: Path) -> None:
    """Send a report to W&B, in a run of its own.

    Args:
        overrides: of logger and logger.*; without logger=wandb nothing is sent.
        title: names the run.
        jobs: of the report.
        page: its file.
    """
    make = _logger_of(overrides)
    if make is None:
        return
    logger = make_logger(LoggedReport(title, make, page.parent), "report", {"folders": title})
    assert logger is not None

    def media() -> dict[str, Any]:
        settings = settings_of([job for job in jobs if job.finished])
        drawn = [*curve_figures(jobs), *setting_figures(settings)]
        return {
            "jobs": as_table(arm_rows(jobs)),
            "summary": as_html(page.read_text(encoding="utf-8")),
            **{figure_key(title): as_html(svg) for title, svg in drawn},
        }

    log_media(logger, media)
    finish(logger)


def _logger_of(overrides: Sequence[str]) -> functools.partial[Any] | None:
    """Return what makes the W&B logger that the overrides ask for; None if they ask for none."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides))
    if cfg.logger is None:
        return None
    values: Any = OmegaConf.to_container(cfg.logger, resolve=True)
    made = hydra.utils.instantiate(values, _convert_="all")
    return made if issubclass(made.func, WandbLogger) else None
