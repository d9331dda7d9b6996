"""Untrusted zip files: `.npz` of numpy and what torch.save writes; see untrusted.py."""

import contextlib
import json
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssae.sae.formats.untrusted import Tensors, refusing, size_of

LARGEST_PICKLE = 2**20
"""Bytes of `data.pkl`: it names tensors, their values lie in other members."""
LARGEST_INFLATION = 20
"""Weights hardly compress: a zip that grows more than this is a bomb."""

# What a state_dict of tensors names, and nothing else of what torch would allow.
PICKLE_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Int", "Long", "Short", "Char", "Bool")
    ),
}
# Other ways for a pickle to name or make objects; torch.save uses none of them for tensors.
PICKLE_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


class NotOnlyTensorsError(ValueError):
    """A dictionary written by torch.save that holds something else; `keys` are its keys."""

    keys: list[str]


def open_npz(path: Path) -> Tensors:
    """Return the arrays of an .npz file."""
    with refusing(path), zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two members have the same name")
        _check_inflation(path, archive)
        headers = {}
        for name, info in members.items():
            if not name.endswith(".npy"):
                raise ValueError(f"member {name[:40]!r} is no .npy file")
            headers[name.removesuffix(".npy")] = _npy_header(archive, info)

    def read(name: str) -> Tensor:
        shape, fortran, dtype, start = headers[name]
        with zipfile.ZipFile(path) as archive, archive.open(name + ".npy") as member:
            member.read(start)
            values = member.read(math.prod(shape) * dtype.itemsize)
            member.read(1)  # at its end, where the checksum is compared
        array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(array, dtype=dtype.newbyteorder("="), order="C"))

    return Tensors(path, {name: header[0] for name, header in headers.items()}, read)


def npz_comment(path: Path) -> dict[str, Any]:
    """Return the JSON object in the comment of a zip file; empty if there is none."""
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        content = json.loads(archive.comment)  # at most 64 kB by the format
        if isinstance(content, dict):
            return content
    return {}


def open_torch(path: Path) -> Tensors:
    """Return the tensors of a dictionary written by torch.save.

    Raises:
        NotOnlyTensorsError: it holds something else, or a tensor larger than the file.
    """
    with refusing(path):
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed, torch.save does not compress")
            pickles = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise ValueError("it holds no data.pkl as torch.save writes it")
            _scan_pickle(archive.read(pickles[0]))
        # The restricted unpickler, on top of the scan; values stay in the file (mmap).
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ValueError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
        others = [key[:40] for key, value in content.items() if not _is_plain(value, path)]
        if others:
            error = NotOnlyTensorsError(
                f"{path} must be a dictionary of tensors only (a state_dict); no tensor: "
                f"{', '.join(others[:12])}; save the state_dict alone"
            )
            error.keys = list(content)
            raise error
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    return Tensors(path, shapes, lambda name: content[name].detach())


def _npy_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{info.filename[:40]} has .npy version {version}")
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(member)
        start = member.tell()
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise ValueError(
            f"{info.filename[:40]} must hold floating-point numbers, it is {dtype}"
            + (" (an object array would have to be unpickled)" if dtype.hasobject else "")
        )
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise ValueError(
            f"{info.filename[:40]} says shape {shape} of {dtype}, its {info.file_size - start} "
            "bytes hold something else"
        )
    return shape, fortran, dtype, start


def _check_inflation(path: Path, archive: zipfile.ZipFile) -> None:
    full = sum(info.file_size for info in archive.infolist())
    if full > LARGEST_INFLATION * size_of(path) + 2**16:
        raise ValueError(f"its {size_of(path)} bytes claim to unpack to {full}")


def _scan_pickle(pickle: bytes) -> None:
    """Refuse a pickle that names anything but tensors, before anything interprets it."""
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL" and argument not in PICKLE_GLOBALS:
            raise ValueError(f"its pickle names {str(argument)[:60]!r}; only tensors are accepted")
        if opcode.name in PICKLE_OPCODES:
            raise ValueError(f"its pickle uses {opcode.name}; only tensors are accepted")


def _is_plain(value: Any, path: Path) -> bool:
    """Whether it is a dense tensor that the file has the bytes for: strides of 0 repeat few."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= size_of(path)
    )
