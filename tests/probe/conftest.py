"""Documents, SAEs and probes small enough to try everything by brute force."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch

from ssae.activation.rows import Rows
from ssae.artifact.store import build
from ssae.language_model.frozen import LanguageModel
from ssae.probe.linear import Linear
from ssae.probe.represent import Site
from ssae.sae.base import SparseAutoencoder
from ssae.sae.topk import TopKSAE
from ssae.tokenise import tokenise

PROBED = "gpt_neox.layers.2"


class Case(NamedTuple):
    """A model that reads a few documents, and a probe."""

    lm: LanguageModel
    rows: Rows
    documents: np.ndarray
    sign: np.ndarray
    probe: Linear


@pytest.fixture(scope="session")
def texts() -> list[str]:
    words = ["sample", "mean", "variance", "of", "random", "matrix", "returns", "a", "test"]
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(words, size=size)) for size in (3, 9, 4, 7, 12, 5)]


@pytest.fixture
def rows_of(make_study: Callable[..., Any], tmp_path: Path) -> Callable[..., Rows]:
    """Return a function that tokenises texts, each a row or rows of its own."""

    def make(texts: list[str], **changes: Any) -> Rows:
        study = make_study(tmp_path, packing="documents", **changes)

        def write(folder: Path) -> dict[str, Any]:
            datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / "documents")
            return {}

        return Rows(tokenise(study, build(study.artifacts, "texts", {"texts": texts}, write)))

    return make


@pytest.fixture
def case(neox: LanguageModel, texts: list[str], rows_of: Callable[..., Rows]) -> Case:
    generator = torch.Generator().manual_seed(1)
    probe = Linear(torch.randn(16, generator=generator, dtype=torch.float64), 0.3)
    documents = np.array([0, 2, 3, 5])
    return Case(neox, rows_of(texts, context_length=10), documents, np.array([1, -1, -1, 1]), probe)


def planted(seed: int = 0, **changes: Any) -> SparseAutoencoder:
    """An SAE with biases, so that recon is not x and silence is not zero."""
    torch.manual_seed(seed)
    sae = TopKSAE(16, 24, k=5, auxk_coefficient=0.0, k_aux=4, **changes)
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.b_enc.normal_()
    return sae.eval()


@pytest.fixture
def site() -> Callable[..., Site]:
    return lambda hookpoint, seed=0: Site(hookpoint, planted(seed))


def text_rows(rows: Rows, document: int) -> list[Any]:
    """The batches, of one row each, of a document."""
    own = np.flatnonzero(rows.row_documents() == document)
    return [rows.batch(own[[i]]) for i in range(len(own))]
