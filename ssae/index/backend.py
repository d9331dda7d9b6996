"""FAISS: what finds it, and what moves its indexes to a GPU where it can use one."""

import logging
from typing import Any

log = logging.getLogger(__name__)

GPU_MOST = 2048
"""Neighbours, and lists, that FAISS can search at once on a GPU."""


def import_faiss() -> Any:
    """Return the module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            'dense retrieval needs FAISS: pip install "ssae[cpu]" (faiss-cpu) or "ssae[gpu]" '
            "(faiss-gpu), or set retriever=bm25"
        ) from None
    return faiss


def on_gpu(index: Any) -> Any:
    """Return a copy of an index on the first GPU, or None where it has to stay on the CPU."""
    faiss = import_faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except RuntimeError as error:  # too large, or a kind or size of code that GPUs do not have
        log.info("%s stays on the CPU: %s", type(index).__name__, str(error).splitlines()[-1])
        return None
