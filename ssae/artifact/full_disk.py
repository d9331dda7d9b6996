"""A full disk, said alike wherever it is met."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

REMEDY = (
    "make room, or set artifacts=<a folder on a larger disk>; what is finished stays, the same "
    "command continues"
)


def is_full_disk(error: BaseException) -> bool:
    """Return whether the disk, or the user's share of it, had no room left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)  # safetensors has an error of its own


@contextlib.contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Say what was being made when the disk became full.

    Args:
        folder: where it is being made.

    Raises:
        ValueError: instead of the error of whoever was writing.
    """
    try:
        yield
    except ValueError:
        raise  # explained already
    except Exception as error:
        if not is_full_disk(error):
            raise
        name = getattr(error, "filename", None)
        file = f" at {name}" if name and Path(name).parent != folder else ""
        raise ValueError(f"the disk became full while making {folder}{file}: {REMEDY}") from error
