"""Read the pool: one pass for the catalogue of the corpus and for embeddings of its documents.

Every rank reads its parts, with processes of its own, and makes a file of each block (Lightning
predict); what is there after an interruption is not made again, by however many ranks go on.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from rich.progress import Progress
from torch.utils.data import DataLoader

from ssae.artifact.store import Artifact, build, locate
from ssae.artifact.together import barrier, build_together, from_rank_zero
from ssae.embedder.base import Embedder
from ssae.pool.blocks import Blocks, BlockWriter, StoredBlocks, find_blocks, in_worker, whole_parts
from ssae.pool.catalogue import CatalogueWriter
from ssae.pool.embeddings import EmbeddingWriter
from ssae.pool.lit_read import LitRead
from ssae.pool.pool import Pool
from ssae.process.progress import progress_bar
from ssae.process.signals import unwrapped_interrupts
from ssae.study import Study
from ssae.training.trainer import predict_trainer

log = logging.getLogger(__name__)

MOST_WORKERS = 8


class Wanted(NamedTuple):
    """An artifact that is made of the pool's blocks."""

    verb: str
    inputs: Mapping[str, Any]
    writer: Callable[[Path], BlockWriter]
    """Gives, for its folder, what makes it."""


def read_corpus(study: Study) -> Artifact:
    """Return the corpus: catalogue of the pool, seeds and tests.

    The same pass embeds the pool for the retriever of the study's arm, if a pretrained encoder does
    that. Every rank calls it.

    Raises:
        ValueError: a document cannot be read, or a split is empty.
    """
    embedders = study.arms[study.arm].retriever.embedders()
    own = [_embeddings(study, embedder, None) for embedder in embedders if not embedder.is_fitted]
    return _read(study, [_corpus(study), *own])[0]


def embed(study: Study, embedder: Embedder) -> Artifact:
    """Return the embeddings of the pool; see `ssae.pool.embeddings.Embeddings`.

    Every rank calls it.
    """
    fitted = fit(study, embedder) if embedder.is_fitted else None
    return _read(study, [_corpus(study), _embeddings(study, embedder, fitted)])[1]


def open_pool(study: Study) -> Pool:
    """Return the pool of the study's corpus. Every rank calls it."""
    return Pool(read_corpus(study), study.corpus)


def _corpus(study: Study) -> Wanted:
    corpus = study.corpus
    return Wanted(
        "corpus",
        {"corpus": corpus, "identity": corpus.identity(), "format": 5},
        functools.partial(CatalogueWriter, corpus=corpus),
    )


def _embeddings(study: Study, embedder: Embedder, fitted: Artifact | None) -> Wanted:
    def writer(folder: Path) -> EmbeddingWriter:
        return EmbeddingWriter(folder, embedder.open(None if fitted is None else fitted.path))

    return Wanted(
        "embed",
        {
            "pool": study.corpus.pool_identity(),
            "embedder": embedder,
            "identity": embedder.identity(),
            "fitted": fitted,
            "format": 2,
        },
        writer,
    )


def fit(study: Study, embedder: Embedder) -> Artifact:
    """Return what the embedder learns from the pool. Every rank calls it."""
    corpus = read_corpus(study)

    def make(folder: Path) -> dict[str, Any]:
        pool = Pool(corpus, study.corpus)
        sample = embedder.sample(len(pool))
        log.info(
            "%s: fitting on %d of %d documents", type(embedder).__name__, len(sample), len(pool)
        )
        embedder.fit(pool.fetch(sample), folder)
        return {"num_documents": len(sample)}

    inputs = {"corpus": corpus, "embedder": embedder, "format": 1}
    return build(study.artifacts, "fit", inputs, make)


def _read(study: Study, wanted: Sequence[Wanted]) -> list[Artifact]:
    """Return the artifacts, all that are missing made in one pass."""
    trainer = predict_trainer(study)
    places = {locate(study.artifacts, w.verb, w.inputs).partial: w for w in wanted}

    def make(folders: list[Path]) -> list[Mapping[str, Any]]:
        writers = [places[folder].writer(folder) for folder in folders]
        for writer in writers:
            from_rank_zero(writer.check)
        _pass(study, writers, trainer)
        return [writer.seal() if trainer.is_global_zero else {} for writer in writers]

    pairs = [(w.verb, w.inputs) for w in wanted]
    return build_together(study.artifacts, pairs, make, trainer)


def _pass(study: Study, writers: Sequence[BlockWriter], trainer: L.Trainer) -> None:
    """Give every block that a writer lacks to it; return when all ranks have."""
    parts = list(study.corpus.parts())
    found = from_rank_zero(lambda: [writer.done() for writer in writers])
    stored = from_rank_zero(lambda: _stored(study))
    everywhere = set.intersection(*(set(done) for done in found))
    whole = set.intersection(*(whole_parts(done) for done in found))
    rank, size = trainer.global_rank, trainer.world_size
    given = study.corpus, parts, everywhere, whole, rank, size
    blocks = StoredBlocks(stored, *given) if stored else Blocks(*given)
    num_parts = len(blocks.own_parts())
    loader = DataLoader(
        blocks,
        batch_size=None,
        num_workers=_num_workers(study.corpus.num_workers, num_parts),
        collate_fn=_as_it_is,
        worker_init_fn=in_worker,
    )
    with _progress(num_parts, trainer) as progress, unwrapped_interrupts():
        lit = LitRead(list(zip(writers, found, strict=True)), progress)
        trainer.predict(lit, iter(loader), return_predictions=False)
    barrier()  # the blocks of all ranks are there


def _stored(study: Study) -> dict[tuple[int, int], Path]:
    """Return the blocks whose text a finished corpus keeps; none of most."""
    corpus = _corpus(study)
    folder = locate(study.artifacts, corpus.verb, corpus.inputs).path / "blocks"
    return find_blocks(folder, ".parquet") if folder.is_dir() else {}


def _num_workers(asked: int | None, num_parts: int) -> int:
    if num_parts < 2 and asked is None:
        return 0  # nothing to share, and little to win
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(num_parts, min(MOST_WORKERS, cores or 1) if asked is None else asked)


def _as_it_is(block: Any) -> Any:
    return block


def _progress(num_parts: int, trainer: L.Trainer) -> Progress:
    if trainer.is_global_zero and num_parts:
        return progress_bar("reading the pool", num_parts)
    return Progress(disable=True)
