"""ssae retrieve: rank the pool by closeness to the seeds and keep a budget of tokens.

documents/        datasets folder, best first: text, source, document (its number in the pool), hash
                  (of the text, case and white space ignored), score, rank, retriever, query (the
                  seed it is closest to, -1: none), num_tokens, num_characters
retrieval.html    what was found, for a person to judge; of random documents there is none
manifest.json     num_documents, num_tokens, what was left out; precision, recall,
                  average_precision with labels
"""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sklearn.metrics import average_precision_score

from ssae.artifact.store import Artifact, build
from ssae.corpus.base import SPLITS, load_split
from ssae.pool.pool import Pool
from ssae.process.ranks import rank
from ssae.read_pool import read_corpus
from ssae.report.retrieval import Retrieved, print_selection, write_retrieval_page
from ssae.report.table import spell
from ssae.retriever.base import NO_SEED, UNSEEN, Retriever, Scores
from ssae.score import read_scores, score
from ssae.selection import Chosen
from ssae.study import Study

log = logging.getLogger(__name__)

PAGE = "retrieval.html"
MOST_SHOWN = 5_000_000
"""Documents, at random, whose scores and sources the page counts."""


def retrieve_for(study: Study, arm: str) -> Artifact:
    """Return the documents that an arm of the study learns from."""
    return retrieve(study, study.arms[arm].retriever, study.arms[arm].budget_tokens)


def retrieve(study: Study, retriever: Retriever, budget_tokens: int) -> Artifact:
    """Return the best-scored documents of the pool, as many as fit the budget.

    Every rank calls it.
    """
    study.language_model.tokenizer  # noqa: B018 - a model that is not there fails now, not later
    corpus = read_corpus(study)
    scored = score(study, retriever)
    inputs = {
        "scores": scored,
        "budget_tokens": budget_tokens,
        "selection": study.selection,
        "tokenizer": study.language_model.tokenizer_identity(),
        "format": 3,
    }

    def count_tokens(texts: list[str]) -> list[int]:
        encoded = study.language_model.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [len(tokens) for tokens in encoded["input_ids"]]

    def make(folder: Path) -> dict[str, Any]:
        pool, scores = Pool(corpus, study.corpus), read_scores(scored)
        splits = {name: load_split(corpus, name)["text"][:] for name in SPLITS[1:]}
        held_out = [text for texts in splits.values() for text in texts]
        chosen, left_out = study.selection.take(pool, scores, held_out, budget_tokens, count_tokens)
        if not chosen:
            raise ValueError(
                f"nothing is selected: {type(retriever).__name__} scored "
                f"{int((scores.values > UNSEEN).sum())} documents, of which {left_out} were left "
                "out; set selection.near_duplicates=null or another retriever"
            )
        name = retriever.name
        documents = _documents(pool, scores, chosen, name)
        documents.save_to_disk(folder / "documents")
        num_tokens = sum(one.num_tokens for one in chosen)
        manifest: dict[str, Any] = {
            "retriever": name, "num_documents": len(chosen), "num_tokens": num_tokens
        }  # fmt: skip
        truth = pool.in_subdomain()
        ids = np.array([one.document for one in chosen])
        quality = {} if truth is None else ranking_quality(truth, scores.values, ids)
        counted = manifest | left_out | quality
        words = {k: spell(v) if isinstance(v, float) else v for k, v in counted.items()}
        log.info("%s", ", ".join(f"{key} {value}" for key, value in words.items()))
        if (scores.seeds != NO_SEED).any():  # of a random draw there is nothing to judge
            write_retrieval_page(
                folder / PAGE,
                _retrieved(pool, scores, documents, splits["seeds"], left_out),
                title=f"{study.name}: {name}",
                summary=_summary(retriever, budget_tokens, len(pool)),
                quality=quality,
            )
        return counted

    return build(study.artifacts, "retrieve", inputs, make)


def show(study: Study, retrieved: Artifact) -> None:
    """Print the best documents of a selection, and where the page about it lies."""
    seeds = load_split(read_corpus(study), "seeds")["text"][:]
    if rank() == 0:
        documents = datasets.Dataset.load_from_disk(retrieved.path / "documents")
        print_selection(documents, seeds)
        if (retrieved.path / PAGE).exists():
            print(f"page: {retrieved.path / PAGE}")  # noqa: T201


def ranking_quality(truth: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the selection and average precision of the ranking.

    Args:
        truth: (num_pool,) bool, which documents belong to the subdomain.
        scores: (num_pool,) of the retriever; what it did not look at comes last.
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
    lowest = scores[scores > UNSEEN].min(initial=0)
    finite = np.where(scores > UNSEEN, scores, np.nextafter(lowest, UNSEEN))
    return {
        "precision": hits / len(chosen),
        "recall": hits / num_true,
        "average_precision": float(average_precision_score(truth, finite)),
    }


def _documents(
    pool: Pool, scores: Scores, chosen: list[Chosen], retriever: str
) -> datasets.Dataset:
    ids = np.array([one.document for one in chosen])
    return datasets.Dataset.from_dict(
        {
            "text": [one.text for one in chosen],
            "source": pool.sources(ids),
            "document": ids,
            "hash": [f"{value:016x}" for value in pool.column("fingerprint")[ids].tolist()],
            "score": scores.values[ids],
            "rank": np.arange(1, len(ids) + 1),
            "retriever": [retriever] * len(ids),
            "query": scores.seeds[ids],
            "num_tokens": [one.num_tokens for one in chosen],
            "num_characters": [len(one.text) for one in chosen],
        }
    )


def _summary(retriever: Retriever, budget_tokens: int, num_pool: int) -> dict[str, str]:
    summary = {"retriever": repr(retriever), "budget": f"{budget_tokens:,} tokens"}
    if num_pool > MOST_SHOWN:
        shown = f"scores and sources below are those of {MOST_SHOWN:,} of them, at random"
        summary["pool"] = f"{num_pool:,} documents; {shown}"
    return summary


def _retrieved(
    pool: Pool,
    scores: Scores,
    documents: datasets.Dataset,
    seeds: list[str],
    left_out: dict[str, int],
) -> Retrieved:
    """Return what the page shows."""
    sample, counted = load_split(pool.artifact, "sample"), _at_random(len(pool), MOST_SHOWN)
    return Retrieved(
        documents=documents,
        seeds=seeds,
        scores=scores.values[counted],
        sources=pool.sources(counted),
        sample_texts=sample["text"][:],
        sample_sources=sample["source"][:],
        left_out=left_out,
    )


def _at_random(num_pool: int, most: int) -> np.ndarray:
    if num_pool <= most:
        return np.arange(num_pool)
    return np.sort(np.random.default_rng(0).choice(num_pool, most, replace=False, shuffle=False))
