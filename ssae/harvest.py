"""ssae harvest: run the language model over the documents and store activations in shards.

The rows of token ids are there (tokenise.py), so the shards are planned exactly; rank r of R makes
the shards r, r + R, ..., one forward pass for all hookpoints. What a shard holds depends on nothing
but the plan, and an interrupted harvest, continued by however many ranks, ends as any other.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from rich.progress import Progress

from ssae.activation.lit_harvest import LitHarvest, Work
from ssae.activation.plan import announce, plan_shards
from ssae.activation.rows import Rows
from ssae.activation.shards import is_intact, shard_name, write_statistics
from ssae.activation.writer import ShardWriter
from ssae.artifact.store import Artifact, locate
from ssae.artifact.together import barrier, build_together, from_all_ranks, from_rank_zero
from ssae.mix import documents_for
from ssae.process.progress import progress_bar
from ssae.process.signals import unwrapped_interrupts
from ssae.sample import sample
from ssae.study import Study
from ssae.tokenise import tokenise
from ssae.training.trainer import predict_trainer

log = logging.getLogger(__name__)


def harvest_for(study: Study, arm: str) -> Artifact:
    """Return the activations that an arm of the study learns from, or a sample of them."""
    check_model(study)  # before the time that retrieval takes
    sample_tokens = study.activation.sample_tokens
    return harvest(study, documents_for(study, arm), sample_tokens=sample_tokens)


def harvest_all_for(study: Study, arm: str) -> dict[str, Artifact]:
    """Return {hookpoint: its activations}, of the study's own hookpoint and of `hookpoints`."""
    hookpoints = check_model(study)  # before the time that retrieval takes
    sample_tokens = study.activation.sample_tokens
    return harvest_all(study, documents_for(study, arm), hookpoints, sample_tokens=sample_tokens)


def harvest(
    study: Study,
    documents: Artifact,
    split: str = "documents",
    max_tokens: int | None = None,
    sample_tokens: int | None = None,
) -> Artifact:
    """Return the activations of the documents at the study's hookpoint; see `harvest_all`."""
    own = check_model(study)[:1]
    [artifact] = harvest_all(study, documents, own, split, max_tokens, sample_tokens).values()
    return artifact


def harvest_all(
    study: Study,
    documents: Artifact,
    hookpoints: list[str],
    split: str = "documents",
    max_tokens: int | None = None,
    sample_tokens: int | None = None,
) -> dict[str, Artifact]:
    """Return {hookpoint: its activations of the documents}, made in the same forward passes.

    Every rank calls it. Sizes of batches change activations by rounding at most, so that an
    artifact does not depend on `harvest_batch_tokens`, nor on the device.

    Args:
        study: names model, context length, bos policy, packing and shard size.
        documents: an artifact of `retrieve`, or of a corpus.
        hookpoints: full names.
        split: the folder of the documents inside the artifact.
        max_tokens: of text, first documents first; null harvests all of it.
        sample_tokens: of those, in random rows; null harvests them all.

    Raises:
        ValueError: there is no text, the disk is too small, or an activation is not finite.
    """
    lm = study.language_model
    tokenised = tokenise(study, documents, split, max_tokens)
    if sample_tokens is not None:
        tokenised = sample(study, tokenised, sample_tokens)
    all_inputs = [
        {
            "rows": tokenised,
            "language_model": lm.identity(),
            "hookpoint": hookpoint,
            "shard_tokens": study.shard_tokens,
            "format": 3,
        }
        for hookpoint in hookpoints
    ]
    places = [locate(study.artifacts, "harvest", inputs).partial for inputs in all_inputs]
    hookpoint_at = dict(zip(places, hookpoints, strict=True))
    trainer = predict_trainer(study)

    def make(folders: list[Path]) -> list[Mapping[str, Any]]:
        by_hookpoint = {hookpoint_at[folder]: folder for folder in folders}
        return write_shards(study, Rows(tokenised), by_hookpoint, trainer)

    artifacts = build_together(
        study.artifacts, [("harvest", inputs) for inputs in all_inputs], make, trainer
    )
    return dict(zip(hookpoints, artifacts, strict=True))


def write_shards(
    study: Study, rows: Rows, folders: dict[str, Path], trainer: L.Trainer
) -> list[Mapping[str, Any]]:
    """Write the shards and statistics of hookpoints that are not in their folders yet.

    Args:
        study: names the model and sizes.
        rows: the text.
        folders: {hookpoint: where its shards go}.
        trainer: whose ranks share the work.

    Returns:
        The manifest's entries of each hookpoint, on rank 0.
    """
    shards = plan_shards(rows, study.shard_tokens)
    lm, batch_tokens, size = study.language_model, study.harvest_batch_tokens, trainer.world_size
    # The ranks of a node share its cores, and nothing else that counts.
    at_once = trainer.num_nodes if lm.device_used == "cpu" else size
    own = shards[trainer.global_rank :: size]
    missing_here = {
        name: [shard.number for shard in own if _is_missing(at, shard.number)]
        for name, at in folders.items()
    }
    work = [
        Work(shard, [name for name, missing in missing_here.items() if shard.number in missing])
        for shard in own
    ]
    work = [item for item in work if item.hookpoints]
    of_ranks = from_all_ranks(missing_here)
    missing = {name: [n for of_rank in of_ranks for n in of_rank[name]] for name in folders}
    widths = from_rank_zero(
        lambda: announce(lm, rows, shards, folders, missing, batch_tokens, at_once)
    )
    largest = max((shard.num_tokens for shard in own), default=0)
    writers = {
        name: ShardWriter(folder, name, largest, *widths[name]) for name, folder in folders.items()
    }
    progress = _progress(sum(item.shard.num_tokens for item in work), trainer)
    try:
        with progress, unwrapped_interrupts():
            lit = LitHarvest(lm, rows, writers, batch_tokens, progress)
            # An iterator has no length that Lightning would want to be the same on all ranks.
            trainer.predict(lit, iter(work), return_predictions=False)
        for writer in writers.values():
            writer.wait()
    finally:
        for writer in writers.values():
            writer.close()
    barrier()  # the shards of all ranks are there
    if not trainer.is_global_zero:
        return [{} for _ in folders]
    sizes = [shard.num_tokens for shard in shards]
    return [
        write_statistics(folder, sizes, rows.token_counts, widths[name].dtype)
        | {"hookpoint": name, "language_model": lm.name}
        for name, folder in folders.items()
    ]


def _is_missing(folder: Path, number: int) -> bool:
    if is_intact(folder, number):
        return False
    if (folder / shard_name(number)).exists():
        log.warning("%s is damaged or unfinished; made again", folder / shard_name(number))
    return True


def check_model(study: Study) -> list[str]:
    """Return the full names of the hookpoints, the study's own first.

    Raises:
        ValueError: the model has no such module, or cannot read so long a context.
    """
    lm = study.language_model
    longest = lm.max_context_length
    if longest is not None and study.context_length > longest:
        raise ValueError(
            f"context_length {study.context_length} is longer than the {longest} positions of "
            f"{lm.name}; set context_length={longest}"
        )
    names = [study.hookpoint, *(study.hookpoints or [])]
    return list(dict.fromkeys(lm.resolve(name) for name in names))


def _progress(num_tokens: int, trainer: L.Trainer) -> Progress:
    """Return the bar of rank 0, which speaks for all; elsewhere one without a task."""
    if trainer.is_global_zero and num_tokens:
        return progress_bar("harvesting", num_tokens)
    return Progress(disable=True)
