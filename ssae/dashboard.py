"""The W&B dashboard of a project: `python -m ssae.dashboard entity/project`.

Curves of training (a line per arm: the mean of the runs that are shown, and their range), Pareto
plots, what was measured of the studied arms, and the reports. It needs an extra:
pip install -e ".[dashboard]".
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssae.explain import explain
from ssae.training.results import HEADLINE

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "ssae"
STEP = "trainer/global_step"
CURVES = {  # what every arm logs while it trains: key, and whether on a logarithmic axis
    "train/fvu": False,
    "train/loss": True,
    "train/l0": False,
    "train/dead": False,
    "train/risk": True,
    "train/effective_sample_size": False,
    "train/largest_weight": False,
    "train/tokens_per_second": False,
}
SCATTERS = (
    ("val/l0", "val/perplexity_subdomain"),
    ("val/l0", "val/tail_recall"),
    ("val/forgetting", "val/tail_recall"),
    ("val/perplexity_general", "val/perplexity_subdomain"),
)


def workspace(entity: str, project: str) -> "Workspace":
    """Return the dashboard of a project; nothing is sent before its save().

    Args:
        entity: a user or a team of W&B.
        project: that logger.project names.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        from wandb_workspaces import expr, workspaces
    except ImportError as error:
        raise ValueError(
            'the dashboard needs an extra: pip install -e ".[dashboard]" (wandb-workspaces)'
        ) from error
    summary = panels.SummaryMetric
    training: list[Any] = [
        panels.LinePlot(x=STEP, y=[key], log_y=log, groupby="JobType", groupby_rangefunc="minmax")
        for key, log in CURVES.items()
    ]
    scatters: list[Any] = [panels.ScatterPlot(x=summary(x), y=summary(y)) for x, y in SCATTERS]
    bars: list[Any] = [panels.BarPlot(metrics=[key], title=key) for key in HEADLINE]
    drawn: list[Any] = [panels.MediaBrowser(media_keys=[key]) for key in ("report", "summary")]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(name="training", panels=training, is_open=True),
            workspaces.Section(name="Pareto", panels=scatters, is_open=True),
            workspaces.Section(name="studied arms", panels=bars, is_open=True),
            workspaces.Section(name="reports", panels=drawn),
        ],
        runset_settings=workspaces.RunsetSettings(
            # Down to the single run: a scatter would draw one point for a whole sweep.
            groupby=[expr.Metric(name) for name in ("Group", "JobType", "ID")],
            order=[expr.Ordering(expr.Summary("val/tail_recall"), ascending=False)],
            pinned_columns=[f"summary:{key}" for key in HEADLINE],
        ),
    )


def main(words: Sequence[str]) -> str:
    """Write the dashboard of `entity/project` and return its address.

    Raises:
        ValueError: the words are not entity/project, or wandb-workspaces is not installed.
    """
    entity, slash, project = words[0].partition("/") if len(words) == 1 else ("", "", "")
    if not (entity and slash and project) or "/" in project:
        raise ValueError(
            f"the dashboard is that of one entity/project, got {' '.join(words)!r}; "
            "for example: python -m ssae.dashboard my-team/ssae"
        )
    return workspace(entity, project).save().url


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))  # noqa: T201
    except Exception as error:
        sys.exit(f"ssae: {explain(error)}")
