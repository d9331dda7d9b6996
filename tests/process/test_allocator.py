import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ssae.process.allocator import M_MMAP_THRESHOLD, tune_allocator

CODE = """
import ctypes, resource, sys
from ssae.process.allocator import tune_allocator
tune_allocator()
kind, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if kind == "torch":
    import torch
    def written():
        return torch.full((size,), 1, dtype=torch.uint8)
    free = id
else:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    def written():
        return libc.memset(libc.malloc(size), 1, size)
    free = libc.free
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [written() for _ in range(number)]
    for array in arrays:
        free(array)
    arrays = array = None
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's"
)


def page_faults(kind: str, number: int, size: int, **environment: str) -> int:
    """Return how many a step takes that gets, writes and frees so many arrays of `size` bytes."""
    set_here = ("THP_MEM_ALLOC_ENABLE", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    kept = {k: v for k, v in os.environ.items() if k not in set_here}
    command = [sys.executable, "-c", CODE, kind, str(number), str(size)]
    return int(subprocess.check_output(command, text=True, env=kept | environment))


@on_glibc
@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="this system gives huge pages always or never",
)
def test_large_arrays_are_faulted_in_by_huge_pages():
    large = ("torch", 1, 2**26)
    assert page_faults(*large, SSAE_ALLOCATOR="system") > 10 * page_faults(*large)


@on_glibc
def test_memory_that_was_freed_serves_the_next_step():
    small = ("malloc", 8, 20 * 2**20)
    assert page_faults(*small) < 100
    assert page_faults(*small, SSAE_ALLOCATOR="system") > 10_000


def test_values_of_the_environment_win(monkeypatch):
    changed = []
    libc = types.SimpleNamespace(mallopt=lambda parameter, value: changed.append(parameter))
    monkeypatch.setattr("ctypes.CDLL", lambda name: libc)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    tune_allocator()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    assert changed == [M_MMAP_THRESHOLD]
