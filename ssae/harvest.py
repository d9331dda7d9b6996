"""ssae harvest: run the language model over the documents and store activations in shards."""

import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ssae.activation.packing import Rows, pack
from ssae.activation.shards import ShardWriter, Tokens
from ssae.artifact import Artifact, build
from ssae.language_model import LanguageModel
from ssae.retrieve import retrieve_for
from ssae.study import Study

log = logging.getLogger(__name__)


def harvest_for(study: Study, arm: str) -> Artifact:
    """Return the activations that an arm of the study learns from."""
    check_model(study)  # before the time that retrieval takes
    return harvest(study, retrieve_for(study, arm))


def harvest(
    study: Study,
    documents: Artifact,
    split: str = "documents",
    max_tokens: int | None = None,
) -> Artifact:
    """Return the activations of the documents at the study's hookpoint.

    Args:
        study: names model, hookpoint, context length and bos policy.
        documents: an artifact of `retrieve`, or of a corpus.
        split: the folder of the documents inside the artifact.
        max_tokens: of text; null harvests all of it.
    """
    lm = study.language_model
    inputs = {
        "documents": documents,
        "split": split,
        "max_tokens": max_tokens,
        "language_model": lm.identity(),
        "hookpoint": check_model(study),
        "context_length": study.context_length,
        "bos": study.bos,
        "format": 1,
    }

    def make(folder: Path) -> dict[str, Any]:
        texts = list(datasets.Dataset.load_from_disk(documents.path / split)["text"])
        return write_shards(study, texts, folder, max_tokens)

    return build(study.artifacts, "harvest", inputs, make)


def write_shards(
    study: Study, texts: list[str], folder: Path, max_tokens: int | None
) -> dict[str, Any]:
    """Capture every token of text, leaving special tokens out, and write shards and statistics.

    Raises:
        ValueError: the model's context is too short, the disk too small, or there is no text.
    """
    lm = study.language_model
    hookpoint = check_model(study)
    writer: ShardWriter | None = None
    rows_per_batch = max(1, study.harvest_batch_tokens // study.context_length)
    num_characters = sum(map(len, texts))
    seen = 0
    columns = (
        TextColumn("harvesting"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        task = progress.add_task("", total=num_characters, rate="")
        done = 0
        for rows in pack(
            lm.tokenizer, texts, study.context_length, study.bos, rows_per_batch, max_tokens
        ):
            tokens = capture_rows(lm, rows, hookpoint)
            if writer is None:
                _check_disk(folder, tokens, num_characters)
                writer = ShardWriter(folder, study.shard_tokens, lm.vocab_size)
            writer.write(tokens)
            seen += len(tokens.token_ids)
            document = int(rows.document_ids[-1, -1])
            progress.update(task, advance=sum(map(len, texts[done:document])))
            done = document
            rate = seen / max(progress.tasks[task].elapsed or 0, 1e-3)
            progress.update(task, rate=f"{seen:,} tokens, {rate:,.0f} tokens/s")
        progress.update(task, completed=num_characters)
    if writer is None:
        raise ValueError("nothing to harvest: the documents hold no token of text")
    return {**writer.close(), "hookpoint": hookpoint, "language_model": lm.name}


def capture_rows(lm: LanguageModel, rows: Rows, hookpoint: str) -> Tokens:
    """Return the activations of the text tokens of packed rows, in reading order."""
    input_ids = torch.from_numpy(rows.input_ids)
    x = lm.capture(input_ids, hookpoint)
    keep = ~torch.isin(input_ids, lm.special_ids)
    positions = torch.arange(input_ids.shape[1], dtype=torch.int32).expand_as(input_ids)
    return Tokens(
        x.cpu()[keep],
        input_ids[keep].int(),
        torch.from_numpy(rows.document_ids)[keep],
        positions[keep],
    )


def check_model(study: Study) -> str:
    """Return the full name of the hookpoint.

    Raises:
        ValueError: the model has no such module, or cannot read so long a context.
    """
    lm = study.language_model
    longest = getattr(lm.model.config, "max_position_embeddings", None)
    if longest is not None and study.context_length > longest:
        raise ValueError(
            f"context_length {study.context_length} is longer than the {longest} positions of "
            f"{lm.name}; set context_length={longest}"
        )
    return lm.resolve(study.hookpoint)


def _check_disk(folder: Path, tokens: Tokens, num_characters: int) -> None:
    """Refuse a harvest the disk cannot hold; 4 characters a token is typical, 2.5 is safe."""
    row_bytes = tokens.activations.shape[1] * tokens.activations.element_size() + 12
    needed = int(num_characters / 2.5 * row_bytes)
    free = shutil.disk_usage(folder).free
    log.info("expecting about %.1f GB of activations", num_characters / 4 * row_bytes / 1e9)
    if needed > free:
        raise ValueError(
            f"the harvest may need {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB "
            "free; set artifacts=<a larger disk> or a smaller token budget"
        )
