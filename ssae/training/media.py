"""What W&B is sent besides numbers: tables, histograms, pages, figures and trained SAEs.

Each is made when W&B is the logger and only then; whatever fails costs a line of warning.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from safetensors.torch import load_file

from ssae.artifact.store import Artifact
from ssae.metric.latents import firing_rate_histogram
from ssae.process.ranks import rank
from ssae.training.logger import forgiving

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

HISTOGRAM = ("counts", "bin_edges")
"""A row of a table that has both is a histogram."""
SAE_FILES = ("sae.safetensors", "sae.json")


def log_media(logger: Logger | None, make: Callable[[], Mapping[str, Any]]) -> None:
    """Log what `make` returns, {key: table, histogram or page}, if W&B is the logger."""
    if isinstance(logger, WandbLogger) and rank() == 0:
        with forgiving(logger):
            media = dict(make())
            logger.experiment.log(media)


def log_sae(logger: Logger | None, artifact: Artifact, name: str) -> None:
    """Log a trained SAE as an artifact of type "sae", and how often its latents fired in training.

    The files are uploaded from where they lie (`wandb sync` of an offline run does so, too), and
    not copied before.

    Args:
        logger: of the run that trained it.
        artifact: of the verb train.
        name: of the W&B artifact; what W&B does not take in it becomes "_".
    """
    if not isinstance(logger, WandbLogger) or rank() > 0:
        return
    log_media(logger, lambda: {"train/firing_rates": _firing_rates(artifact)})
    with forgiving(logger):
        import wandb

        kept = {k: v for k, v in artifact.manifest.items() if k not in ("files", "snapshots")}
        made = wandb.Artifact(_spelt(name)[:128], type="sae", metadata=kept)
        for file in SAE_FILES:
            path = str((artifact.path / file).resolve())
            made.add_file(path, name=file, policy="immutable", skip_cache=True)
        logger.experiment.log_artifact(made, aliases=["latest", artifact.hash])


def as_table(rows: Sequence[Any]) -> "wandb.Table":
    """Return rows as a table: a column for every key, in the order in which keys first appear.

    Args:
        rows: mappings, of which not all need have all keys; what is not a number, a text or a
            truth value becomes JSON. Other rows are the one column "value".
    """
    import wandb

    mappings = [row if isinstance(row, Mapping) else {"value": row} for row in rows]
    names = list(dict.fromkeys(name for row in mappings for name in row))
    data: list[Any] = [[_cell(row.get(name)) for name in names] for row in mappings]
    return wandb.Table(columns=names, data=data, allow_mixed_types=True)


def as_tables(tables: Mapping[str, Any]) -> "dict[str, wandb.Table]":
    """Return {"tables/<name>": table} of every table that holds anything, a mapping as one row."""
    lists = {k: v if isinstance(v, list) else [v] for k, v in tables.items() if v}
    return {f"tables/{name}": as_table(rows) for name, rows in lists.items()}


def as_histograms(tables: Mapping[str, Any]) -> "dict[str, wandb.Histogram]":
    """Return {"<table>/<texts of the row>": histogram} of every row that is one, or holds some.

    Those that it holds have their key behind that.
    """
    found = {}
    for name, row in _rows(tables):
        texts = [value for value in row.values() if isinstance(value, str)]
        held = {(key,): value for key, value in row.items() if isinstance(value, Mapping)}
        for own, one in {(): row, **held}.items():
            if all(one.get(key) for key in HISTOGRAM):
                found["/".join([name, *texts, *own])] = _histogram(one)
    return found


def as_html(text: str) -> "wandb.Html":
    """Return a page, or an SVG, as it is."""
    import wandb

    return wandb.Html(text, inject=False)


def as_figures(page: str) -> "dict[str, wandb.Html]":
    """Return {"figures/<title>": drawing} of the drawings of a page (report/svg.py)."""
    drawings = re.findall(r"<svg\b[^>]*>.*?</svg>", page, re.DOTALL)
    titled = [(re.search(r'aria-label="([^"]*)"', svg), svg) for svg in drawings]
    return {figure_key(title[1]): as_html(svg) for title, svg in titled if title}


def figure_key(title: str) -> str:
    """Return the key of a drawing, from which W&B makes the name of a file.

    >>> figure_key("Tail recall: subdomain_test")
    'figures/Tail_recall_subdomain_test'
    """
    return f"figures/{_spelt(title)}"


def _firing_rates(artifact: Artifact) -> "wandb.Histogram":
    """Return a histogram of log10 of the firing rates, of the latents that fired in training."""
    fires = load_file(artifact.path / "latents.safetensors")["fire_counts"].to(torch.int64)
    return _histogram(firing_rate_histogram(fires, artifact.manifest["num_tokens"]))


def _histogram(row: Mapping[str, Any]) -> "wandb.Histogram":
    import wandb

    counts, edges = (np.array(row[key]) for key in HISTOGRAM)
    return wandb.Histogram(np_histogram=(counts, edges))


def _rows(tables: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, table in tables.items():
        for row in table if isinstance(table, list) else [table]:
            if isinstance(row, Mapping):
                yield name, row


def _spelt(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, ensure_ascii=False)
