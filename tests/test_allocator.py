import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
if sys.argv[1] == "huge":
    from ssae.allocator import use_huge_pages
    use_huge_pages()
import torch
for _ in range(3):  # 64 MiB, written, freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = torch.ones(2**24)
    del array
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="this system gives huge pages always or never",
)
def test_large_arrays_are_faulted_in_by_huge_pages():
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    faults = {
        mode: int(
            subprocess.check_output([sys.executable, "-c", CODE, mode], text=True, env=environment)
        )
        for mode in ("huge", "small")
    }
    assert faults["small"] > 10 * faults["huge"]


def test_a_value_of_the_environment_wins(monkeypatch):
    from ssae.allocator import use_huge_pages

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
