"""The language model that is studied, as the embedder: what it takes for alike is alike."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssae.embedder.base import Embed, Embedder, batches_by_length, check_batch
from ssae.language_model.frozen import LanguageModel
from ssae.settings import check_types


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectEmbedder(Embedder):
    """embedding(text) = mean over the text's tokens of the activations at a hookpoint.

    Args:
        language_model: the one that is studied.
        hookpoint: a module path, or "auto", the block at half depth.
        max_length: tokens of a text that are read.
        batch_size_tokens: tokens, padding included, of a forward pass.
    """

    # Its files are content by `identity`, not its name.
    language_model: LanguageModel = dataclasses.field(metadata={"content": False})
    hookpoint: str
    max_length: int
    batch_size_tokens: int = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "retriever.embedder.")
        check_batch(self.max_length, self.batch_size_tokens)

    def identity(self) -> Any:
        """Return the model's."""
        return self.language_model.identity()

    def open(self, folder: Path | None) -> Embed:
        """Return what embeds texts; the model loads on the first."""
        lm = self.language_model
        hookpoint = lm.resolve(self.hookpoint)
        longest = min(self.max_length, lm.max_context_length or self.max_length)

        def embed(texts: Sequence[str]) -> np.ndarray:
            ids = [
                row[:longest]
                for row in lm.tokenizer(list(texts), add_special_tokens=False, verbose=False)[
                    "input_ids"
                ]
            ]
            vectors: dict[int, np.ndarray] = {}
            for rows in batches_by_length(ids, self.batch_size_tokens):
                size = max(1, len(ids[rows[0]]))
                padded = torch.zeros(len(rows), size, dtype=torch.int64)
                mask = torch.zeros_like(padded)
                for place, row in enumerate(rows):
                    padded[place, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.int64)
                    mask[place, : len(ids[row])] = 1
                x = lm.capture(padded, hookpoint, mask).float()
                weights = mask[..., None].to(x.device)
                means = (x * weights).sum(1) / weights.sum(1).clamp_min(1)
                vectors |= dict(zip(rows, means.cpu().numpy(), strict=True))
            return np.stack([vectors[row] for row in range(len(ids))])

        return embed
