"""Score the pool with a retriever, once for all budgets.

scores.npy    (num_pool,) float32, higher is closer; -inf: the retriever did not look
seeds.npy     (num_pool,) int32, the closest seed; -1: none
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssae.artifact.store import Artifact, build
from ssae.corpus.base import load_split
from ssae.pool.pool import Pool
from ssae.read_pool import read_corpus
from ssae.retriever.base import UNSEEN, Retriever, Scores

if TYPE_CHECKING:
    from ssae.study import Study


def score(study: "Study", retriever: Retriever) -> Artifact:
    """Return the retriever's scores of the whole pool. Every rank calls it.

    Raises:
        ValueError: a score is not a number, or the retriever finds nothing to go by.
    """
    corpus = read_corpus(study)
    made = retriever.prepare(study)

    def make(folder: Path) -> dict[str, Any]:
        pool = Pool(corpus, study.corpus)
        seeds = load_split(corpus, "seeds")["text"][:]
        scores = retriever.score(study, pool, seeds, made)
        if np.isnan(scores.values).any():
            document = int(np.flatnonzero(np.isnan(scores.values))[0])
            raise ValueError(
                f"{type(retriever).__name__} gives document {document} of the pool a score that is "
                "not a number; choose another retriever, e.g. retriever=bm25"
            )
        np.save(folder / "scores.npy", scores.values.astype(np.float32), allow_pickle=False)
        np.save(folder / "seeds.npy", scores.seeds.astype(np.int32), allow_pickle=False)
        seen = int((scores.values > UNSEEN).sum())
        return {"num_documents": len(pool), "num_scored": seen}

    inputs = {"corpus": corpus, "retriever": retriever, "made": made, "format": 2}
    return build(study.artifacts, "score", inputs, make)


def read_scores(scored: Artifact) -> Scores:
    """Open the scores of an artifact."""
    names = ("scores", "seeds")
    return Scores(*(np.load(scored.path / f"{name}.npy", allow_pickle=False) for name in names))
