"""Content-addressed directories: `artifacts/<verb>/<hash>`, built once and reused.

    artifacts/train/3f2a.../
      config.yaml      the values that decide the content, and the hashes of the inputs
      ...              the content
      manifest.json    sha256 and size of every file, library versions, what the verb adds
      DONE             written last

A directory gets its final name by one atomic rename after everything is on disk, so a directory
that exists is complete. Work in progress is `<hash>.partial`; it is continued by the verbs that can
(training) and rebuilt by the others, never trusted. A file lock lets one process build while others
that need the same artifact wait; the operating system frees the lock of a process that dies.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LIBRARIES = ("ssae", "torch", "transformers", "datasets", "lightning", "numpy", "scikit-learn")


def describe(value: Any) -> Any:
    """Return `value` as plain JSON data that says what it is: the input of the content hash.

    Dataclasses become {"_target_": class, field: ...} without the fields marked
    `metadata={"content": False}` (speed, not content); partials become {"_target_": callable,
    keyword: ...}; artifacts become their hash.
    """
    if isinstance(value, Artifact):
        return value.hash
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("content", True)
        }
        return {"_target_": _qualified_name(type(value)), **fields}
    if isinstance(value, functools.partial):
        if value.args:
            raise ValueError(f"cannot describe positional arguments of {value}")
        return {"_target_": _qualified_name(value.func), **describe(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"cannot describe a {type(value).__name__}: {value!r}")


def content_hash(value: Any) -> str:
    """Return 16 hex digits of the sha256 of `describe(value)` as canonical JSON."""
    text = json.dumps(describe(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_announced: set[Path] = set()
CHECKED_BYTES = 2**26
"""Reuse compares the checksums of files up to this size; of larger ones (shards) the size."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex; a file is read once per version of it."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _sha256(path: Path, *version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished directory of `verb`, addressed by the hash of what went into it."""

    path: Path
    verb: str

    @property
    def hash(self) -> str:
        """The content hash, which is the directory's name."""
        return self.path.name

    @property
    def partial(self) -> Path:
        """Where the artifact is made before it gets its name."""
        return self.path.with_suffix(".partial")

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`."""
        return json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))

    def corrupt_files(self, checked_bytes: float = math.inf) -> list[str]:
        """Return the files that are missing or no longer what the manifest says.

        Args:
            checked_bytes: of larger files only the size is compared.
        """
        return [
            name
            for name, entry in self.manifest["files"].items()
            if not (self.path / name).is_file()
            or (self.path / name).stat().st_size != entry["size"]
            or (entry["size"] <= checked_bytes and file_sha256(self.path / name) != entry["sha256"])
        ]


def locate(root: Path, verb: str, inputs: Mapping[str, Any]) -> Artifact:
    """Return where the artifact of `verb` for `inputs` is, or would be."""
    return Artifact(root / verb / content_hash(inputs), verb)


def build(
    root: Path,
    verb: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, Any]],
    *,
    resumable: bool = False,
) -> Artifact:
    """Return the artifact of `verb` for `inputs`, calling `make(folder)` if it is not there yet.

    Args:
        root: the artifacts folder.
        verb: names the sub-folder.
        inputs: everything that decides the content; see `describe`.
        make: writes the content into the folder and returns what to add to the manifest.
        resumable: leave a partial folder of an earlier, interrupted call for `make` to continue.

    Raises:
        ValueError: the finished directory is damaged, or the folder cannot be written.
    """
    artifact = locate(root, verb, inputs)
    try:
        artifact.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{error}; set artifacts=<a folder you can write to>") from error
    if artifact.path.exists():
        return _reuse(artifact)
    lock = FileLock(artifact.path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s %s: another process is building it, waiting", verb, artifact.hash)
        lock.acquire()
    try:
        if artifact.path.exists():
            return _reuse(artifact)
        partial = artifact.partial
        if partial.exists() and not resumable:
            log.info("%s %s: rebuilding, an earlier run was interrupted", verb, artifact.hash)
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            extra = make(partial)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.rmdir()  # only if nothing is in it that another call could continue
            raise
        _seal(partial, inputs, extra)
        partial.rename(artifact.path)
        _announced.add(artifact.path)
    finally:
        lock.release()
    return artifact


def _reuse(artifact: Artifact) -> Artifact:
    path = artifact.path
    try:
        broken = artifact.corrupt_files(CHECKED_BYTES) if (path / "DONE").exists() else ["DONE"]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        broken = ["manifest.json"]
    if broken:
        raise ValueError(
            f"artifact {path} is damaged ({', '.join(broken[:3])}); remove it and run again: "
            f"rm -r {path}"
        )
    if path not in _announced:  # a verb may ask for the same input many times
        _announced.add(path)
        log.info("%s: reusing %s", artifact.verb, path)
    return artifact


def _seal(folder: Path, inputs: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(describe(inputs), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {**extra, "files": files, "libraries": _versions()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    (folder / "DONE").touch()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _qualified_name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
