"""What Hydra tells about a sweep, in the process that started it."""

import collections
import logging
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0


def queued_jobs(folder: Path) -> str:
    """Return the numbers of a sweep's jobs that wait or run on this machine's cluster."""
    known = sorted(path.name for path in (folder / ".submitit").glob("[0-9]*_*"))
    if not known or shutil.which("squeue") is None:
        return ""
    arrays = ",".join(sorted({name.split("_")[0] for name in known}))
    shown = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--jobs={arrays}"], capture_output=True, text=True
    )  # of jobs that SLURM has forgotten: an error
    return " ".join(sorted(shown.stdout.split()))


def count_jobs(overrides: Sequence[str]) -> int:
    """Return how many jobs a grid of overrides has; 0 where that takes more than the overrides.

    >>> count_jobs(["verb=run", "seed=0,1,2", "objective.tilt=choice(0, 5)"])
    6
    >>> count_jobs(["verb=run", "sae=glob(*)"])
    0
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if any(one.value_type == ValueType.GLOB_CHOICE_SWEEP for one in parsed):
        return 0  # the configs of a group, which the sweeper looks up
    swept = [one for one in parsed if one.is_discrete_sweep()]
    return math.prod(len(list(one.sweep_string_iterator())) for one in swept)


class Watch(Callback):
    """Notes the folder of a sweep and, while its jobs run elsewhere, says how many have ended."""

    folder: ClassVar[Path | None] = None
    num_jobs: ClassVar[int] = 0
    """That the overrides ask for; a sweeper that searches decides itself."""
    _stopped: ClassVar[threading.Event] = threading.Event()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin to watch. A job in this process says itself how it goes."""
        Watch.folder = Path(config.hydra.sweep.dir)
        Watch.num_jobs = count_jobs(config.hydra.overrides.task)
        config.hydra.sweep.subdir  # noqa: B018 - what is cached here, the jobs' configs inherit
        launcher = config.hydra.launcher._target_
        if "submitit" in launcher:
            import submitit  # noqa: F401 - sets its level when it is first imported

            # It warns at every look at a cluster that keeps no accounts.
            logging.getLogger("submitit").setLevel(logging.ERROR)
        if "BasicLauncher" not in launcher:
            Watch._stopped.clear()
            threading.Thread(target=self._watch, args=(Watch.folder,), daemon=True).start()
        said = ""
        while jobs := queued_jobs(Watch.folder):  # of the same command before: not twice
            if jobs != said:
                said = jobs
                log.info("waiting for jobs of this sweep that SLURM still has: %s", jobs)
            time.sleep(POLL_SECONDS)

    @classmethod
    def stop(cls) -> None:
        """End the watching."""
        cls._stopped.set()

    @staticmethod
    def _watch(folder: Path) -> None:
        from ssae.sweep.outcome import FILE, read

        said = ""
        while not Watch._stopped.wait(POLL_SECONDS):
            counts = collections.Counter(
                read(path.parent).get("status", "unreadable") for path in folder.glob(f"*/{FILE}")
            )
            text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
            if text and text != said:
                said = text
                log.info("%s: %s", folder.name, text)
