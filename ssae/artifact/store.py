"""Content-addressed directories: `artifacts/<verb>/<hash>`, built once and reused.

    artifacts/train/3f2a.../
      config.yaml      the values that decide the content, and the hashes of the inputs
      ...              the content
      manifest.json    digest and size of every file, library versions, what the verb adds
      DONE             sha256 of manifest.json, written last

A directory gets its final name by one atomic rename after everything is on disk, so a directory
that exists is complete. Work in progress is `<hash>.partial`; harvest and train continue it, others
rebuild it, none trusts it. Who builds holds a lease, others that need the artifact wait (lease.py).
Ranks: see together.py.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ssae.artifact.full_disk import full_disk_explained
from ssae.artifact.lease import check_lease, lease
from ssae.artifact.manifest import is_as_written, read_manifest, sync, write_manifest

log = logging.getLogger(__name__)

ARTIFACT_FORMAT = 2
"""Part of every hash: artifacts of an older layout are made anew instead of misread."""


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
        """`manifest.json`.

        Raises:
            ValueError: it is missing, or not what was written.
        """
        try:
            return read_manifest(self.path)
        except ValueError as error:
            raise self.damaged(str(error)) from error

    def damaged(self, what: str) -> ValueError:
        """Return the error that says so, with the remedy."""
        remedy = f"remove it and run again: rm -r {self.path}"
        if self.verb == "harvest":
            remedy = (
                "what is whole in it is kept if you take it for unfinished and run again: "
                f"mv {self.path} {self.partial}"
            )
        return ValueError(f"artifact {self.path} is damaged ({what}); {remedy}")

    def corrupt_files(self, digest_bytes: float = math.inf) -> list[str]:
        """Return the files that are missing or no longer what the manifest says.

        Args:
            digest_bytes: of larger files only the size is compared.
        """
        return [
            name
            for name, entry in self.manifest["files"].items()
            if not is_as_written(self.path / name, entry, digest_bytes)
        ]


def locate(root: Path, verb: str, inputs: Mapping[str, Any]) -> Artifact:
    """Return where the artifact of `verb` for `inputs` is, or would be."""
    return Artifact(root / verb / content_hash(_versioned(inputs)), verb)


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
    if artifact.path.exists():
        return check(artifact)
    with lease(artifact.path):
        if artifact.path.exists():
            return check(artifact)
        if artifact.partial.exists() and not resumable:
            log.info("%s %s: rebuilding, an earlier run was interrupted", verb, artifact.hash)
            shutil.rmtree(artifact.partial)
        with partial_folder(artifact) as folder:
            extra = make(folder)
        seal(artifact, inputs, extra)
    return artifact


@contextlib.contextmanager
def partial_folder(artifact: Artifact) -> Iterator[Path]:
    """Make the folder of work in progress; after an error it stays if anything is in it."""
    try:
        with full_disk_explained(artifact.partial):
            artifact.partial.mkdir(parents=True, exist_ok=True)
            yield artifact.partial
    except BaseException:
        with contextlib.suppress(OSError):
            artifact.partial.rmdir()  # only if nothing is in it that another call could continue
        raise


def check(artifact: Artifact) -> Artifact:
    """Return a finished artifact that is to be reused.

    Raises:
        ValueError: it is damaged.
    """
    broken = artifact.corrupt_files(CHECKED_BYTES)
    if broken:
        raise artifact.damaged(", ".join(broken[:3]))
    if artifact.path not in _announced:  # a verb may ask for the same input many times
        _announced.add(artifact.path)
        log.info("%s: reusing %s", artifact.verb, artifact.path)
    return artifact


def seal(artifact: Artifact, inputs: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write config, manifest and DONE into the partial folder and give it its name.

    Args:
        artifact: whose partial folder is complete.
        inputs: as `build` got them.
        extra: for the manifest; its "digests", {file: {kind: hex}}, spares reading those again.

    Raises:
        ValueError: this process was taken for dead meanwhile, and another builds the artifact.
    """
    check_lease(artifact.path)
    folder = artifact.partial
    text = yaml.safe_dump(describe(_versioned(inputs)), sort_keys=False, allow_unicode=True)
    with full_disk_explained(folder):
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        write_manifest(folder, extra)
    folder.rename(artifact.path)
    sync(artifact.path.parent)
    _announced.add(artifact.path)


def _versioned(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "artifact_format": ARTIFACT_FORMAT}


def _qualified_name(thing: Any) -> str:
    # Our own names are unique: a class that moves to another file leaves its artifacts valid.
    module = "ssae" if thing.__module__.startswith("ssae.") else thing.__module__
    return f"{module}.{thing.__qualname__}"
