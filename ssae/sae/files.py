"""Save and load SAEs in the formats of ssae/sae/formats; a folder's content tells which it is.

Nothing in a file is executed, and weights are checked against what their description says before
they are used.
"""

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssae.artifact.manifest import file_sha256
from ssae.sae.base import SparseAutoencoder
from ssae.sae.formats import FORMATS, native
from ssae.sae.formats.content import Content, build, weights_of
from ssae.sae.formats.untrusted import read_json
from ssae.sae.hub import locate

AUTO = "auto"


def load(path_or_repo_id: str | Path, format: str = AUTO) -> SparseAutoencoder:
    """Return a saved SAE, on the CPU, in eval mode.

    Args:
        path_or_repo_id: a folder, or an id of the hub: owner/repository[@revision][/sub/folder].
        format: ssae, saelens, gemma_scope, dictionary_learning, sparsify, or auto: the one whose
            files are there.

    Raises:
        ValueError: there is no SAE, or a file is damaged or does not fit the others.
    """
    folder = locate(path_or_repo_id)
    return build(read(folder, format), folder)


def save(
    sae: SparseAutoencoder,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    format: str = "ssae",
) -> None:
    """Write an SAE into the folder `path`, replacing one of the same format.

    Args:
        sae: of unscaled activations.
        path: is made if need be.
        metadata: hookpoint, language_model, ...; JSON values.
        format: see `load`.

    Raises:
        ValueError: the format cannot hold this architecture, or the folder holds another format.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"metadata must be a mapping, got {metadata!r}; for a format: format=...")
    content = Content(sae.architecture, sae.hyperparameters, weights_of(sae), dict(metadata or {}))
    write(content, Path(path), format)


def read(path_or_repo_id: str | Path, format: str = AUTO) -> Content:
    """Return a saved SAE as plain data, with its metadata; see `load`."""
    folder = locate(path_or_repo_id)
    name = detect(folder) if format == AUTO else format
    return _module(name).read(folder)


def write(content: Content, folder: Path, format: str) -> None:
    """Write plain data into `folder`; see `save`."""
    module = check_holds(format, content.architecture)
    others = [name for name, other in FORMATS.items() if name != format and _holds(other, folder)]
    if others:
        raise ValueError(
            f"{folder} holds an SAE in the format {others[0]}; write {format} into another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Everything is on disk before anything takes its name: an interruption leaves the old SAE.
    unnamed = folder / ".unnamed"
    shutil.rmtree(unnamed, ignore_errors=True)
    unnamed.mkdir()
    try:
        module.write(content, unnamed)
        for name in module.FILES:
            if (unnamed / name).exists():
                os.replace(unnamed / name, folder / name)
    finally:
        shutil.rmtree(unnamed)


def _holds(module: Any, folder: Path) -> bool:
    try:
        return module.holds(folder)
    except ValueError:  # what cannot be read may be replaced
        return False


def check_holds(format: str, architecture: str) -> Any:
    """Return the module of a format.

    Raises:
        ValueError: there is none, or it cannot hold the architecture; says which can.
    """
    module = _module(format)
    if architecture not in module.HOLDS:
        able = [name for name, other in FORMATS.items() if architecture in other.HOLDS]
        raise ValueError(
            f"{format} holds {', '.join(module.HOLDS)}, not {architecture}; "
            f"use one of {', '.join(able)}"
        )
    return module


def detect(folder: Path) -> str:
    """Return the name of the format in `folder`.

    Raises:
        ValueError: there is none, or more than one; says what is there and what each needs.
    """
    found = [name for name, module in FORMATS.items() if module.holds(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{folder} holds an SAE as {' and as '.join(found)}; say format={found[0]}"
        )
    inside = [
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*", "*/*/*")
        for path in sorted(folder.glob(pattern))
        if path.is_dir() and any(module.holds(path) for module in FORMATS.values())
    ]
    if inside:
        listed = ", ".join(inside[:12]) + (" ..." if len(inside) > 12 else "")
        raise ValueError(f"{folder} holds SAEs in {listed}; give the folder of one of them")
    there = sorted(path.name for path in folder.iterdir())
    files = ", ".join(there[:12]) + (" ..." if len(there) > 12 else "")
    needs = "; ".join(f"{name}: {module.NEEDS}" for name, module in FORMATS.items())
    raise ValueError(f"{folder} holds no SAE, only {files or 'nothing'}. A format needs {needs}")


def identity(folder: Path) -> dict[str, Any]:
    """Return what makes it this SAE: not its metadata, which name paths and arms."""
    name = detect(folder)
    if name != "ssae":
        files = [file for file in FORMATS[name].FILES if (folder / file).is_file()]
        return {"format": name, "files": {file: file_sha256(folder / file) for file in files}}
    described = load_description(folder)
    said = {key: described.get(key) for key in ("architecture", "hyperparameters")}
    return said | {"weights": file_sha256(folder / native.WEIGHTS)}


def load_description(folder: Path) -> dict[str, Any]:
    """Return the content of `sae.json`.

    Raises:
        ValueError: it is missing or not JSON.
    """
    return read_json(folder / native.DESCRIPTION)


def trained_scale(folder: Path) -> float | None:
    """Return by what training scaled activations; None of an SAE that was trained elsewhere.

    `ssae train` and `ssae polish` say it in manifest.json, a name that others use, too: what is not
    a positive number says nothing.
    """
    try:
        scale = read_json(folder / "manifest.json").get("input_scale")
    except ValueError:
        return None
    return scale if isinstance(scale, float) and 0 < scale < math.inf else None


def _module(format: str) -> Any:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return FORMATS[format]
