import dataclasses
import hashlib

import numpy as np
import pytest

from ssae.embedder.base import Embedder
from ssae.pool import blocks
from ssae.pool.embeddings import Embeddings, unit_rows
from ssae.read_pool import embed


def vector(text: str) -> np.ndarray:
    """Six numbers that depend on the text; a text with "nothing" in it has none."""
    if "nothing" in text:
        return np.zeros(6, np.float32)
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest[:24], np.uint32).astype(np.float32) - 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hashed(Embedder):
    wrong: str | None = None

    def open(self, folder):
        def embed(texts):
            rows = np.stack([vector(text) for text in texts])
            bad = [self.wrong is not None and self.wrong in text for text in texts]
            rows[np.array(bad)] = np.nan
            return rows

        return embed


@pytest.fixture
def study(listed, make_study, tmp_path, monkeypatch):
    """A pool of three parts, one without a document that counts, in blocks of 4."""
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 4)
    parts = [
        [f"first {i}" if i % 5 else "x" for i in range(18)],
        ["x"] * 6,
        [f"third {i}" if i != 7 else "nothing" for i in range(9)],
    ]
    return make_study(tmp_path, corpus=listed(*parts))


def test_blocks_and_rows_are_the_unit_vectors_of_the_texts(study, read):
    artifact = embed(study, Hashed())
    pool = read(study.corpus).pool
    found = Embeddings(artifact, pool)
    expected = unit_rows(np.stack([vector(text) for text in pool.texts()])).astype(np.float16)
    assert (len(found), found.dim) == (len(pool), 6) == (14 + 9, 6)
    whole = list(found.blocks())
    assert len(whole) == len(pool.block_slices) > 6
    assert all(rows.dtype == np.float32 for rows in whole)
    assert np.array_equal(np.concatenate(whole), expected.astype(np.float32))
    norms = np.linalg.norm(np.concatenate(whole), axis=1)
    assert ((np.abs(norms - 1) < 2e-3) | (norms == 0)).all()
    assert (norms == 0).sum() == 1
    dice = np.random.default_rng(0)
    for size in (0, 1, 5, 200):
        ids = dice.integers(len(pool), size=size)
        rows = found.rows(ids)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected[ids].astype(np.float32))


def test_a_vector_that_is_not_finite_is_refused_and_nothing_is_cached(study, tmp_path):
    with pytest.raises(
        ValueError, match=r"document 3 of part 2 is not finite \('third 3'\).*tfidf"
    ):
        embed(study, Hashed(wrong="third 3"))
    assert not list(tmp_path.glob("artifacts/*/*/DONE"))
    embed(study, Hashed())
    assert len(list(tmp_path.glob("artifacts/*/*/DONE"))) == 2


def test_the_vectors_of_another_embedder_are_another_artifact(study):
    assert embed(study, Hashed()).hash != embed(study, Hashed(wrong="no such text")).hash
