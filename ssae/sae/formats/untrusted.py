"""Read files that somebody else wrote: nothing is executed, nothing is allocated on their word.

    read_json            an object of at most 4 MB
    open_safetensors     the header says every shape; the library checks it against the file's size
    zipped.open_npz      numpy headers, checked against the size of each member; no object arrays
    zipped.open_torch    torch.save; its pickle is scanned and may only name tensors

Each `open_*` returns `Tensors`: shapes first, values when they turned out to fit. Whatever is wrong
raises ValueError. The parsers below them raise nearly anything on damaged bytes, so every call of
one is guarded by `refusing`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

LARGEST_JSON = 2**22
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Shapes = Mapping[str, tuple[int, ...]]


class Tensors(NamedTuple):
    """The tensors of one file; `read` gives one of them, in the dtype of the file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def take(self, expected: Shapes, said_by: str) -> dict[str, Tensor]:
        """Return exactly the expected tensors as float32.

        Raises:
            ValueError: others are there or some are missing, a shape differs, or a value is not a
                finite number.
        """
        if self.shapes != dict(expected):
            names = sorted(expected.keys() | self.shapes.keys())
            wrong = [name for name in names if expected.get(name) != self.shapes.get(name)]
            listed = "; ".join(
                f"{name[:40]} {_words(expected.get(name))}, found {_words(self.shapes.get(name))}"
                for name in wrong[:6]
            )
            raise ValueError(
                f"{self.path} must hold the weights that {said_by} describes: {listed}"
                f"{' ...' if len(wrong) > 6 else ''}; get both files again from the same place"
            )
        return {name: self._finite(name) for name in expected}

    def integers(self, name: str) -> list[int]:
        """Return a small tensor of whole numbers as a list."""
        with refusing(self.path):
            tensor = self.read(name)
            numbers = tensor.reshape(-1).tolist()
        if tensor.is_floating_point() or not all(type(number) is int for number in numbers):
            raise ValueError(f"{self.path}: {name} must hold whole numbers, it is {tensor.dtype}")
        return numbers

    def _finite(self, name: str) -> Tensor:
        with refusing(self.path):
            stored = self.read(name)
        if stored.dtype not in FLOATS:
            raise ValueError(
                f"{self.path}: {name} must hold floating-point numbers, it is {stored.dtype}; "
                "convert it first"
            )
        # A copy of its own: what was read may be a window into the file.
        tensor = stored.to(torch.float32, copy=True).contiguous()
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{self.path}: {name} holds non-finite values as float32; such an SAE computes "
                "nothing: take an earlier checkpoint"
            )
        return tensor


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on the bytes of `path` into one ValueError."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(str(path)):  # ours: it says so already
            raise
        raise ValueError(f"cannot read {path}: {_reason(error)}") from error
    except Exception as error:
        raise ValueError(f"cannot read {path}: {_reason(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file."""
    with refusing(path):
        if size_of(path) > LARGEST_JSON:
            raise ValueError(f"it has {size_of(path)} bytes, more than {LARGEST_JSON}")
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content


def whole(values: Mapping[str, Any], key: str, path: Path) -> int:
    """Return a positive whole number that a JSON file must hold."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(
            f"{path}: {key} must be a whole number of at least 1, it is {str(value)[:40]!r}"
        )
    return value


def open_safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file."""
    with refusing(path):
        size_of(path)
        file = safe_open(path, "pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return Tensors(path, shapes, file.get_tensor)


def size_of(path: Path) -> int:
    """Return the size of a regular file."""
    if not path.is_file():  # neither a missing one nor a pipe or a device
        raise ValueError("there is no such file")
    return os.path.getsize(path)


def _words(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(shape)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return kind + lines[0][:200]
