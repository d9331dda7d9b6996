"""What Hydra tells about a sweep, in the process that started it."""

import collections
import logging
import threading
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0


class Watch(Callback):
    """Notes the folder of a sweep and, while its jobs run elsewhere, says how many have ended."""

    folder: ClassVar[Path | None] = None
    _stopped: ClassVar[threading.Event] = threading.Event()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin to watch. A job in this process says itself how it goes."""
        Watch.folder = Path(config.hydra.sweep.dir)
        config.hydra.sweep.subdir  # noqa: B018 - what is cached here, the jobs' configs inherit
        launcher = config.hydra.launcher._target_
        if "submitit" in launcher:
            import submitit  # noqa: F401 - sets its level when it is first imported

            # It warns at every look at a cluster that keeps no accounts.
            logging.getLogger("submitit").setLevel(logging.ERROR)
        if "BasicLauncher" not in launcher:
            Watch._stopped.clear()
            threading.Thread(target=self._watch, args=(Watch.folder,), daemon=True).start()

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
