"""What the logger is told of an evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssae.process.ranks import rank
from ssae.report.table import Metric, find, number
from ssae.training.logger import finish, log_metrics, make_logger
from ssae.training.media import as_figures, as_histograms, as_html, as_tables, log_media

if TYPE_CHECKING:
    from ssae.study import Study

HEADLINE = {  # name: metric and split of the studied arm
    "val/tail_recall": ("tail_recall", "subdomain_test"),
    "val/tail_error": ("tail_error", "subdomain_test"),
    "val/perplexity_subdomain": ("perplexity_spliced", "subdomain_test"),
    "val/perplexity_general": ("perplexity_spliced", "general_test"),
    "val/fvu_subdomain": ("fvu", "subdomain_test"),
    "val/fvu_general": ("fvu", "general_test"),
    "val/forgetting": ("forgetting", "general_test"),
    "val/concept_auroc": ("concept_auroc", "both_tests"),
    "val/l0": ("l0", "subdomain_test"),
}
"""By which runs of a project are sorted and drawn against each other: plain numbers of the summary,
which a `define_metric` with a summary of its own would turn into mappings."""
NO_CONFIG = (
    "artifacts", "run_dir", "logger", "trainer", "export", "minimise", "labelled",
    "shift", "diagnose", "polish",
)  # fmt: skip
"""Of a study: where things go and what computes them, not what they are."""


def log_evaluation(
    study: "Study", metrics: Sequence[Metric], tables: Mapping[str, Any], page: Path | None
) -> None:
    """Log the numbers over all bands, <split>/<metric>/<arm>, and those of the studied arm, val/*.

    W&B also gets every row and table, the histograms among them, and the page with its figures.

    Args:
        study: that was evaluated; its values are the run's config.
        metrics: the rows of metrics.json.
        tables: those of tables.json.
        page: report.html, if there is one.
    """
    if rank() > 0:
        return
    logger = make_logger(study, "evaluate", study_config(study))
    if logger is None:
        return
    log_media(logger, lambda: as_tables({"metrics": metrics, **tables}) | as_histograms(tables))
    if page is not None:
        log_media(logger, lambda: _page(page.read_text(encoding="utf-8")))
    log_metrics(logger, all_numbers(metrics) | headline_numbers(metrics, study.arm))
    logger.save()
    finish(logger)


def log_shift(study: "Study", metrics: Sequence[Metric], page: Path) -> None:
    """Log the numbers of `ssae shift`, shift/<metric>/<row>, W&B also the table and the page."""
    numbers = {
        f"shift/{row['name']}/{row['sae']}": row["value"]
        for row in metrics
        if row["sae"] is not None and row["band"] == "all"
    }
    log_page(study, "shift", metrics, numbers, page)


def log_page(
    study: "Study",
    verb: str,
    metrics: Sequence[Metric],
    numbers: Mapping[str, float],
    page: Path | None,
) -> None:
    """Log the numbers of a verb that has settings of its own, W&B also the rows and the page.

    Args:
        study: its settings are study.<verb>.
        verb: shift, diagnose, ...
        metrics: the rows of metrics.json.
        numbers: those to log, by name.
        page: what was written of them, if anything.
    """
    logger = make_logger(study, verb, study_config(study) | {verb: getattr(study, verb)})
    if logger is None:
        return
    log_media(logger, lambda: as_tables({verb: metrics}))
    if page is not None:
        log_media(logger, lambda: _page(page.read_text(encoding="utf-8")))
    log_metrics(logger, numbers)
    logger.save()
    finish(logger)


def study_config(study: "Study") -> dict[str, Any]:
    """Return everything of a study that decides its results."""
    names = [field.name for field in dataclasses.fields(study) if field.name not in NO_CONFIG]
    return {name: getattr(study, name) for name in names}


def all_numbers(metrics: Sequence[Metric]) -> dict[str, float]:
    """Return {<split>/<metric>/<arm or retriever>: value} over all bands."""
    return {
        f"{r['split']}/{r['name']}/{r['sae'] or r.get('retriever')}": r["value"]
        for r in metrics
        if r["band"] == "all" and r["value"] is not None and "reference" not in r
    }


def headline_numbers(metrics: Sequence[Metric], arm: str) -> dict[str, float]:
    """Return {val/<name>: value} of what was measured of an arm."""
    found = {
        name: number(find(metrics, metric, split=split, sae=arm))
        for name, (metric, split) in HEADLINE.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _page(text: str) -> dict[str, Any]:
    return {"report": as_html(text), **as_figures(text)}
