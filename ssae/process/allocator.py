"""How this process gets its memory."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
KEPT_BYTES = 2**30
"""Freed memory that is not given back."""
MAPPED_BYTES = 2**25
"""Arrays above this are mapped one by one; glibc allows no more."""


def tune_allocator() -> None:
    """Make large arrays cheap to get; call before torch allocates anything.

    Every step frees what the next one needs again. By default glibc gives it back meanwhile, and
    each page is faulted in anew at its first write: a tenth of a forward pass of a small model.
    Here up to KEPT_BYTES stay, and what is mapped anew nevertheless, arrays of more than
    MAPPED_BYTES such as a gradient, comes in pages of 2 MiB: 33 MB are there in 1 ms instead of
    6 ms. Values in the environment win, and SSAE_ALLOCATOR=system leaves everything as it is.
    Elsewhere than on Linux with glibc nothing changes.
    """
    if os.environ.get("SSAE_ALLOCATOR") == "system":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value, variable in (
        (M_TRIM_THRESHOLD, KEPT_BYTES, "MALLOC_TRIM_THRESHOLD_"),
        (M_MMAP_THRESHOLD, MAPPED_BYTES, "MALLOC_MMAP_THRESHOLD_"),
    ):
        if variable not in os.environ:
            libc.mallopt(parameter, value)
