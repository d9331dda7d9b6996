"""ssae retrieve: rank the pool by closeness to the seeds and keep a budget of tokens.

documents/        datasets folder: text, source, score, rank, retriever, num_tokens
manifest.json     num_documents, num_tokens; precision, recall, average_precision with labels
"""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sklearn.metrics import average_precision_score

from ssae.artifact.store import Artifact, build
from ssae.corpus.base import load_splits
from ssae.report.table import spell
from ssae.retriever.base import Retriever
from ssae.study import Study

log = logging.getLogger(__name__)


def retrieve_for(study: Study, arm: str) -> Artifact:
    """Return the documents that an arm of the study learns from."""
    return retrieve(study, study.arms[arm].retriever, study.arms[arm].budget_tokens)


def score(study: Study, retriever: Retriever) -> Artifact:
    """Return the retriever's scores of the whole pool: any budget and any model share them."""
    corpus = study.corpus.build(study.artifacts)

    def make(folder: Path) -> dict[str, Any]:
        study.language_model.tokenizer  # noqa: B018 - a model that is not there fails now, not later
        splits = load_splits(corpus)
        scores = retriever.score(splits.pool["text"], splits.seeds["text"])
        np.save(folder / "scores.npy", scores.astype(np.float32), allow_pickle=False)
        return {"num_documents": len(scores)}

    inputs = {"corpus": corpus, "retriever": retriever, "format": 1}
    return build(study.artifacts, "score", inputs, make)


def retrieve(study: Study, retriever: Retriever, budget_tokens: int) -> Artifact:
    """Return the best-scored documents of the pool, as many as fit the budget.

    The document that crosses the budget is still taken, so the selection is never empty.
    """
    corpus = study.corpus.build(study.artifacts)
    scored = score(study, retriever)
    inputs = {
        "scores": scored,
        "budget_tokens": budget_tokens,
        "tokenizer": study.language_model.tokenizer_identity(),
        "format": 1,
    }

    def make(folder: Path) -> dict[str, Any]:
        splits = load_splits(corpus)
        scores = np.load(scored.path / "scores.npy", allow_pickle=False)
        order = np.argsort(-scores, kind="stable")
        num_tokens = tokens_up_to(study.language_model.tokenizer, splits.pool, order, budget_tokens)
        order = order[: len(num_tokens)]
        chosen = splits.pool.select(order)
        name = type(retriever).__name__.lower()
        documents = datasets.Dataset.from_dict(
            {
                "text": chosen["text"],
                "source": chosen["source"],
                "score": scores[order],
                "rank": np.arange(1, len(order) + 1),
                "retriever": [name] * len(order),
                "num_tokens": num_tokens,
            }
        )
        documents.save_to_disk(folder / "documents")
        manifest = {"retriever": name, "num_documents": len(order), "num_tokens": sum(num_tokens)}
        truth = study.corpus.in_subdomain(splits.pool)
        if truth is not None:
            manifest |= ranking_quality(np.asarray(truth), scores, order)
        shown = {k: spell(v) if isinstance(v, float) else v for k, v in manifest.items()}
        log.info("%s", ", ".join(f"{key} {value}" for key, value in shown.items()))
        return manifest

    return build(study.artifacts, "retrieve", inputs, make)


def tokens_up_to(
    tokenizer: Any, pool: datasets.Dataset, order: np.ndarray, budget_tokens: int
) -> list[int]:
    """Return token counts of the documents in `order` until they reach the budget."""
    counts: list[int] = []
    total = 0
    for start in range(0, len(order), 256):
        texts = pool.select(order[start : start + 256])["text"]
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for tokens in encoded:
            counts.append(len(tokens))
            total += len(tokens)
            if total >= budget_tokens:
                return counts
    log.warning(
        "the whole pool holds %d tokens, fewer than budget_tokens=%d: everything is selected",
        total,
        budget_tokens,
    )
    return counts


def ranking_quality(truth: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the selection and average precision of the ranking.

    Args:
        truth: (num_pool,) bool, which documents belong to the subdomain.
        scores: (num_pool,) of the retriever.
        chosen: (num_chosen,) indices of the selection.

    Raises:
        ValueError: no document of the pool belongs to the subdomain.
    """
    num_true = int(truth.sum())
    if num_true == 0:
        raise ValueError(
            "no document of the pool belongs to the subdomain: check corpus.subdomain_source "
            "(null switches the ground truth off)"
        )
    hits = int(truth[chosen].sum())
    return {
        "precision": hits / len(chosen),
        "recall": hits / num_true,
        "average_precision": float(average_precision_score(truth, scores)),
    }
