"""What an arm learns from: the documents retrieved for it and, against forgetting, general ones.

documents/        datasets folder as of `retrieve`: the retrieved documents, then random ones
manifest.json     num_documents, num_tokens, num_general_documents, num_general_tokens
"""

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ssae.artifact.store import Artifact, build
from ssae.retrieve import retrieve, retrieve_for
from ssae.retriever.random import Random
from ssae.study import Study

log = logging.getLogger(__name__)


def documents_for(study: Study, arm_name: str) -> Artifact:
    """Return the documents that an arm of the study learns from.

        general tokens = general_share / (1 - general_share) * retrieved tokens

    Documents are whole and none is taken twice: the share falls short by the random documents that
    were retrieved, too, in a pool of which a tenth was retrieved by a tenth. Every rank calls it.
    """
    retrieved = retrieve_for(study, arm_name)
    share = study.arms[arm_name].general_share
    if share == 0:
        return retrieved
    budget_tokens = max(1, round(retrieved.manifest["num_tokens"] * share / (1 - share)))
    beside = f"{budget_tokens:,} general tokens beside {retrieved.manifest['num_tokens']:,}"
    log.info("%s: general_share %g: %s", arm_name, share, beside)
    general = retrieve(study, Random(seed=study.seed, draw="general"), budget_tokens)
    inputs = {"retrieved": retrieved, "general": general, "format": 1}

    def make(folder: Path) -> dict[str, Any]:
        first, others = (
            datasets.Dataset.load_from_disk(artifact.path / "documents")
            for artifact in (retrieved, general)
        )
        new = np.flatnonzero(~np.isin(others["document"][:], first["document"][:]))
        others = others.select(new)
        documents = datasets.concatenate_datasets([first, others])
        documents.save_to_disk(folder / "documents")
        num_general = sum(others["num_tokens"][:])
        counted = {
            "num_documents": len(documents),
            "num_tokens": sum(first["num_tokens"][:]) + num_general,
            "num_general_documents": len(others),
            "num_general_tokens": num_general,
        }
        log.info("%s: %s", arm_name, ", ".join(f"{k} {v:,}" for k, v in counted.items()))
        return counted

    return build(study.artifacts, "mix", inputs, make)
