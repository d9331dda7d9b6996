"""Activation shards: the files of a `harvest`; writer.py writes them, reader.py reads them.

    shard_00000.safetensors   origins (n, 4) int32: token id, document, position, checksum
                              activations (n, d_in) in the model's dtype
    shard_00000.json          its xxh3_128, and its part of the statistics
    statistics.safetensors    mean (d_in,) float64, token_counts (vocab_size,) int64
    manifest.json             num_tokens, d_in, dtype, shard_sizes, variance, mean_norm, hookpoint

The checksum of a token, whose number in the harvest is i, is linear in its words modulo 2^32:

    checksum = sum_j a_j word_j + b . (token id, document, position, i)    a_j, b_j odd

An odd factor has an inverse, so a change of any one word changes the checksum; what is read is
checked against it, token by token. A shard gets its name when all of it is on disk, and its .json
after that: what an interrupted harvest leaves with both is kept, and depends on nothing but its
number, not on which rank made it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.artifact.manifest import file_digest
from ssae.artifact.tensors import write_tensors

STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Tokens(NamedTuple):
    """Activations and where they come from, one row a token."""

    activations: Tensor
    """(n, d_in) in the model's dtype."""
    token_ids: Tensor
    """(n,) int32 vocabulary ids."""
    document_ids: Tensor
    """(n,) int32 index into the harvested documents."""
    positions: Tensor
    """(n,) int32 position in the model's context."""


class Sums(NamedTuple):
    """Float64 sums over the tokens of a shard."""

    x: Tensor
    """(d_in,) sum of x."""
    squares: Tensor
    """() sum of ||x||^2."""
    norms: Tensor
    """() sum of ||x||."""

    def plus(self, other: "Sums") -> "Sums":
        """Return the sums over the tokens of both."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class Checksum:
    """The checksums of tokens of one width and dtype; see the module docstring."""

    def __init__(self, d_in: int, dtype: torch.dtype) -> None:
        row_bytes = d_in * dtype.itemsize
        self.words = torch.int32 if row_bytes % 4 == 0 else torch.int16
        # Raw output of a bit generator is the same in every version of numpy.
        drawn = np.random.PCG64(0).random_raw(4 + row_bytes // self.words.itemsize)
        odd = torch.from_numpy((drawn.astype(np.uint32) | 1).view(np.int32))
        self.of_origin, self.of_words = odd[:4], odd[4:]

    def of_activations(self, activations: Tensor) -> Tensor:
        """Return the part (n,) int32 of activations (n, d_in), on their device."""
        if self.of_words.device != activations.device:
            self.of_words = self.of_words.to(activations.device)
        words = activations.view(self.words)
        if words.is_cpu and words.dtype == torch.int32:
            return torch.mv(words, self.of_words)  # makes no products to be summed
        return (words * self.of_words).sum(1, dtype=torch.int32)

    def of_origins(self, origins: Tensor, indices: Tensor) -> Tensor:
        """Return the part (n,) int32 of origins (n, 3) and token numbers (n,)."""
        a, b = self.of_origin[:3], self.of_origin[3]
        # int64 wraps around as int32 does: only the low words count.
        number = (indices * b.long()).to(torch.int32)
        return (origins * a).sum(1, dtype=torch.int32) + number


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard_{number:05d}.safetensors"


def header(num_tokens: int, d_in: int, dtype: torch.dtype) -> bytes:
    """Return the bytes of a shard before its origins, as safetensors has them."""
    origins = 16 * num_tokens
    activations = origins + num_tokens * d_in * dtype.itemsize
    entries = {
        "origins": {"dtype": "I32", "shape": [num_tokens, 4], "data_offsets": [0, origins]},
        "activations": {
            "dtype": STORED[dtype],
            "shape": [num_tokens, d_in],
            "data_offsets": [origins, activations],
        },
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_bytes(num_tokens: int, d_in: int, dtype: torch.dtype) -> int:
    """Return the size of a shard's file."""
    return len(header(num_tokens, d_in, dtype)) + num_tokens * (16 + d_in * dtype.itemsize)


class Finished(NamedTuple):
    """What the .json of a shard says."""

    xxh3_128: str
    num_tokens: int
    sums: Sums


def write_finished(path: Path, finished: Finished) -> None:
    """Write the .json of a shard; `path` is the .json's."""
    sums = {name: value.tolist() for name, value in finished.sums._asdict().items()}
    content = json.dumps(finished._asdict() | {"sums": sums})
    text = json.dumps({"content": content, "sha256": _sha256(content)}, indent=1)
    path.write_text(text, encoding="utf-8")


def read_finished(folder: Path, number: int) -> Finished | None:
    """Return what is known of a shard; None if it is not there, or its .json is damaged."""
    path = folder / shard_name(number)
    try:
        outer = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not path.is_file() or _sha256(outer["content"]) != outer["sha256"]:
            return None
        content = json.loads(outer["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    values = content["sums"].items()
    sums = Sums(**{name: torch.tensor(value, dtype=torch.float64) for name, value in values})
    return Finished(content["xxh3_128"], content["num_tokens"], sums)


def is_intact(folder: Path, number: int) -> bool:
    """Return whether a shard is there and is, byte for byte, what was written."""
    finished, path = read_finished(folder, number), folder / shard_name(number)
    return finished is not None and file_digest(path, "xxh3_128") == finished.xxh3_128


def write_statistics(
    folder: Path, shard_sizes: list[int], token_counts: Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    """Write statistics.safetensors of complete shards; return the manifest's entries.

    Sums are added in the order of shards: how many ranks made them does not show.

    Args:
        folder: of the shards.
        shard_sizes: tokens of each.
        token_counts: (vocab_size,) int64 occurrences of each token type.
        dtype: of activations.

    Raises:
        ValueError: a shard is not there.
    """
    total: Sums | None = None
    digests = {}
    for number, size in enumerate(shard_sizes):
        finished = read_finished(folder, number)
        if finished is None or finished.num_tokens != size:
            raise ValueError(
                f"{folder / shard_name(number)} is not what was planned; give the same command "
                "again to make it anew"
            )
        digests[shard_name(number)] = {"xxh3_128": finished.xxh3_128}
        total = finished.sums if total is None else total.plus(finished.sums)
    assert total is not None
    num_tokens = sum(shard_sizes)
    mean = total.x / num_tokens
    write_tensors({"mean": mean, "token_counts": token_counts}, folder / "statistics.safetensors")
    return {
        "num_tokens": num_tokens,
        "d_in": len(mean),
        "dtype": str(dtype).removeprefix("torch."),
        "shard_sizes": shard_sizes,
        "variance": float(total.squares) / num_tokens - float(mean.square().sum()),
        "mean_norm": float(total.norms) / num_tokens,
        "digests": digests,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
