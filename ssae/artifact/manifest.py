"""The files of a finished directory: digest and size of each, and of manifest.json itself.

Digests are sha256; a verb that writes many bytes gives xxh3_128 for those, which is some five times
faster and finds damage as well.
"""

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

DIGESTS = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}
LIBRARIES = ("ssae", "torch", "transformers", "datasets", "lightning", "numpy", "scikit-learn")
SETTLED_NS = 10**9


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    return file_digest(path, "sha256")


def file_digest(path: Path, kind: str) -> str:
    """Return a digest of `DIGESTS` of a file's bytes, in hex; read once per version of the file."""
    status = path.stat()
    # A change within the clock's tick leaves the time as it was, so a new file is read anew.
    settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
    digest = _digest if settled else _digest.__wrapped__
    return digest(path.resolve(), kind, status.st_size, status.st_mtime_ns, status.st_ino)


def is_as_written(path: Path, entry: Mapping[str, Any], digest_bytes: float = math.inf) -> bool:
    """Return whether a file is what its entry of the manifest says.

    Args:
        path: may be missing.
        entry: {"size": bytes, and "sha256" or "xxh3_128": hex}.
        digest_bytes: of larger files only the size is compared.
    """
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    kinds = [kind for kind in DIGESTS if kind in entry and entry["size"] <= digest_bytes]
    return all(file_digest(path, kind) == entry[kind] for kind in kinds)


@functools.cache
def _digest(path: Path, kind: str, *version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGESTS[kind]).hexdigest()


def write_manifest(folder: Path, extra: Mapping[str, Any]) -> None:
    """Write manifest.json and DONE; return when everything in the folder is on disk.

    Args:
        folder: complete but for these two.
        extra: for the manifest; its "digests", {file: {kind: hex}}, spares reading those again.
    """
    for name in ("DONE", "manifest.json"):
        (folder / name).unlink(missing_ok=True)  # of a process that was killed in here
    known = extra.get("digests", {})
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        digest = known.get(name) or {"sha256": file_sha256(path)}
        files[name] = {"size": path.stat().st_size, **digest}
    own = {key: value for key, value in extra.items() if key != "digests"}
    text = json.dumps({**own, "files": files, "libraries": _versions()}, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    done = hashlib.sha256(text.encode()).hexdigest()
    (folder / "DONE").write_text(done, encoding="ascii")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return manifest.json.

    Raises:
        ValueError: names the file that is missing or is not what was written.
    """
    for name in ("DONE", "manifest.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
    content = (folder / "manifest.json").read_bytes()
    if hashlib.sha256(content).hexdigest().encode() != (folder / "DONE").read_bytes():
        raise ValueError("manifest.json is not what DONE says: one of the two is damaged")
    return json.loads(content)


def sync(path: Path) -> None:
    """Return when a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
