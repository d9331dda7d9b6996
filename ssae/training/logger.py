"""The logger of a run. One run of W&B stays one, however often it is interrupted and continued."""

import contextlib
import copy
import functools
import logging
import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger, WandbLogger

from ssae.artifact.store import describe
from ssae.process.ranks import rank

log = logging.getLogger(__name__)

ID_FILE = "wandb_id"
AGENT = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""What an agent of a W&B sweep tells its process: of the run that reports its result."""
MOST_TAG = 64
"""Characters that W&B takes in a tag."""


class Logging(Protocol):
    """What a logger needs of a study."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def logger(self) -> functools.partial[Any] | None: ...  # noqa: D102
    @property
    def run_dir(self) -> Path: ...  # noqa: D102


def make_logger(
    study: Logging, name: str, config: Mapping[str, Any], id_folder: Path | None = None
) -> Logger | None:
    """Return the logger of an arm's training, the evaluation or a report; None with logger=none.

    W&B that cannot be reached, or refuses, is done without: the run is logged offline.

    Args:
        study: whose `logger` it is; its name becomes a tag of the W&B run.
        name: of the run; also its type, by which W&B filters and groups.
        config: what decides the run's result, as `describe` takes it.
        id_folder: remembers the id of the W&B run, for who continues it; None: the one run of a
            process that reports to the agent of a W&B sweep.
    """
    if study.logger is None:
        return None
    options: dict[str, Any] = {"save_dir": study.run_dir / "logs", "name": name}
    if not issubclass(study.logger.func, WandbLogger):  # pyright: ignore[reportArgumentType]
        return study.logger(**options)
    Path(options["save_dir"]).mkdir(parents=True, exist_ok=True)  # W&B would write to /tmp
    if rank() > 0:
        return study.logger(**options)  # which makes no run
    own = {"job_type": name, "tags": [study.name[:MOST_TAG]]}
    options |= {k: v for k, v in own.items() if k not in study.logger.keywords}
    if id_folder is not None:
        options["id"] = _run_id(id_folder)
    attached = id_folder is None
    logger = _started(study.logger, options, attached=attached)
    if logger is None:
        logger = _started(study.logger, options | {"offline": True}, attached=attached)
        assert logger is not None
    if logger._offline:
        folder = Path(logger.experiment.dir).parent
        log.info("W&B logs offline; to upload it: wandb sync %s", shlex.quote(str(folder)))
    logger.log_hyperparams(describe(config))
    return logger


def log_metrics(logger: Logger, metrics: Mapping[str, Any], step: int | None = None) -> None:
    """Log numbers, or say that they could not be: training does not end for want of a curve."""
    with forgiving(logger):
        logger.log_metrics(dict(metrics), step)


def finish(logger: Logger | None, *, interrupted: bool = False) -> None:
    """End the W&B run, so that the next arm gets its own.

    Args:
        logger: of any kind.
        interrupted: W&B shows that the run is going to continue.
    """
    if isinstance(logger, WandbLogger) and rank() == 0:
        with forgiving(logger):
            if interrupted:
                logger.experiment.mark_preempting()
            logger.experiment.finish(exit_code=int(interrupted))


@contextlib.contextmanager
def forgiving(logger: Logger) -> Iterator[None]:
    """Say what W&B did not take instead of ending what is logged; errors of others pass."""
    try:
        yield
    except Exception as error:
        if not isinstance(logger, WandbLogger):
            raise
        log.warning("W&B did not take what was logged (%s: %s)", type(error).__name__, error)


def _started(
    make: Callable[..., WandbLogger], options: Mapping[str, Any], *, attached: bool
) -> WandbLogger | None:
    """Start a W&B run; return None if that takes the network and there is none."""
    import wandb

    logger = make(**options)
    init = logger._wandb_init
    if "settings" in init:  # the config's one object, which W&B writes the run's id into
        init["settings"] = copy.copy(init["settings"])
    told = {key: os.environ[key] for key in AGENT if key in os.environ}
    if told:
        wandb.teardown()  # which else goes on with what the environment was before
    for key in told if not attached else ():
        del os.environ[key]
    try:
        logger.experiment  # noqa: B018 - made when it is first asked for
    except Exception as error:
        if logger._offline:
            raise ValueError(
                f"W&B cannot log, not even offline: {error}; set logger=csv"
            ) from error
        log.warning("W&B is not available: %s", " ".join(str(error).split()))
        wandb.teardown()  # what is left of the attempt has the run's id
        return None
    finally:
        os.environ |= told
    return logger


def _run_id(folder: Path) -> str:
    path = folder / ID_FILE
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    if not known:
        folder.mkdir(parents=True, exist_ok=True)
        known = secrets.token_hex(4)
        path.write_text(known, encoding="utf-8")
    return known
