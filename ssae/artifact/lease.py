"""One process builds an artifact: who holds `<hash>.lease`. Others wait, on any machine.

The file is made by an exclusive create and renewed while its holder works, which every file system
that machines share can do; locking files, not all can. A holder that died is found out at once on
its own machine, and from another when the lease has not been renewed for LEASE_SECONDS.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import SoftFileLease, Timeout

from ssae.process.signals import check_interrupted

log = logging.getLogger(__name__)

LEASE_SECONDS = 120.0
"""A third of it passes between two renewals. Who waits goes by its own clock alone."""
POLL_SECONDS = 0.5

_held: dict[Path, SoftFileLease] = {}


@contextlib.contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the lease of an artifact, waiting for another process that builds it.

    Args:
        path: of the artifact, which need not exist.

    Raises:
        ValueError: the folder cannot be written.
    """
    check_interrupted()
    own = SoftFileLease(path.with_suffix(".lease"), lease_duration=LEASE_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            own.acquire(timeout=0)
        except Timeout:
            who = "" if own.owner is None else f" ({own.owner.pid} on {own.owner.hostname})"
            what = f"{path.parent.name} {path.name}"
            log.info("%s: another process%s builds it; waiting", what, who)
            own.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        raise ValueError(f"{error}; set artifacts=<a folder you can write to>") from error
    _held[path] = own
    try:
        yield
    finally:
        del _held[path]
        own.release()


def check_lease(path: Path) -> None:
    """Return if the lease that this process holds is still its own.

    Raises:
        ValueError: it was taken for dead meanwhile, and another process builds the artifact.
    """
    lost = _held[path].compromise
    if lost is not None:
        raise ValueError(
            f"{path}: another process builds it by now, since this one stood still for more than "
            f"{LEASE_SECONDS:.0f} s ({lost.reason}); give the same command again"
        )
