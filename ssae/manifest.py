"""The files of a finished directory: sha256 and size of each, and of manifest.json itself."""

import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = ("ssae", "torch", "transformers", "datasets", "lightning", "numpy", "scikit-learn")
SETTLED_NS = 10**9


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex; a file is read once per version of it."""
    status = path.stat()
    # A change within the clock's tick leaves the time as it was, so a new file is read anew.
    settled = time.time_ns() - status.st_mtime_ns > SETTLED_NS
    digest = _sha256 if settled else _sha256.__wrapped__
    return digest(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _sha256(path: Path, *version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, extra: Mapping[str, Any]) -> None:
    """Write manifest.json and DONE; return when everything in the folder is on disk.

    Args:
        folder: complete but for these two.
        extra: for the manifest; its "sha256", {file: digest}, spares reading those files again.
    """
    for name in ("DONE", "manifest.json"):
        (folder / name).unlink(missing_ok=True)  # of a process that was killed in here
    known = extra.get("sha256", {})
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        digest = known.get(name) or file_sha256(path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    own = {key: value for key, value in extra.items() if key != "sha256"}
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
        raise ValueError("manifest.json is not what DONE says")
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
