"""Labelled documents of a dataset of the Hugging Face hub, or of a local copy of one."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from ssae.artifact.manifest import file_sha256
from ssae.corpus.hub import commit_of
from ssae.labelled.base import Labelled, Row, checked_row, explained


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledHub(Labelled):
    """Splits of a dataset.

    Args:
        path: repository; or a local directory, saved with `save_to_disk` or of parquet or jsonl.
        name: configuration, where the dataset has several.
        revision: branch, tag or commit; null is the default branch.
        read_splits: of the dataset, in the order they are read.
        text_field: column with the text.
        names: {column: what its numbers 0, 1, ... stand for}.
    """

    path: str = dataclasses.field(metadata={"content": False})
    name: str | None = None
    revision: str | None = None
    read_splits: list[str]
    text_field: str
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return the commit, or the checksums of a local copy."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            return {"files": [[str(f.relative_to(folder)), file_sha256(f)] for f in files]}
        return {"path": self.path, "commit": self._commit()}

    def __post_init__(self) -> None:
        super().__post_init__()
        splits = self.read_splits
        if not isinstance(splits, list) or not splits or len(set(splits)) < len(splits):
            raise ValueError(
                f"labelled.read_splits must be a list of different splits, got {splits!r}; "
                "set labelled.read_splits=[train,test]"
            )

    def rows(self) -> Iterator[Row]:
        """Yield every row of the splits.

        Raises:
            ValueError: the dataset cannot be read, or lacks a split or column.
        """
        fields = (self.text_field, self.label, self.spurious, "split")
        for split in self.read_splits:
            where = f"labelled.path={self.path} ({split})"
            opened = self._open(split)
            with explained(where):
                for number, row in enumerate(opened, start=1):
                    # Its own name, whatever a column of that name says.
                    said = {**row, "split": split}
                    yield checked_row(said, number, where, fields, self.names)

    def _open(self, split: str) -> Any:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            revision = self._commit()
            try:
                return self._load(split, revision)
            except ValueError as error:  # no such split or configuration: the message lists them
                raise self._no_split(split, error) from error
            except Exception as error:  # the transport's own change with their version
                raise self._unreachable(error) from error
        is_dict = (folder / "dataset_dict.json").is_file()
        if not is_dict and not (folder / "state.json").is_file():
            try:
                return self._load(split, None)
            except Exception as error:
                raise self._no_split(split, error) from error
        with explained(str(folder)):
            saved = datasets.load_from_disk(folder)
        if isinstance(saved, datasets.Dataset):  # one split, of whatever name
            if len(self.read_splits) > 1:
                raise ValueError(
                    f"{folder} holds one split, got labelled.read_splits={self.read_splits}; "
                    "set labelled.read_splits=[train], or labelled.path=<a folder with all>"
                )
            return saved
        if split not in saved:
            raise self._no_split(split, ValueError(f"there are {', '.join(map(str, saved))}"))
        return saved[split]

    def _load(self, split: str, revision: str | None) -> Any:
        path = str(Path(self.path).expanduser()) if revision is None else self.path
        return datasets.load_dataset(
            path, self.name, split=split, revision=revision, streaming=True
        )

    def _no_split(self, split: str, error: Exception) -> ValueError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ValueError(
            f"{self.path} has no split {split!r} that can be read: {reason}; set "
            "labelled.read_splits=[<its splits>]"
        )

    def _commit(self) -> str:
        try:
            return commit_of(self.path, self.revision)
        except Exception as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ValueError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ValueError(
            f"labelled.path: cannot read dataset {self.path!r} (revision {self.revision}): "
            f"{type(error).__name__}: {reason}; check the name, the network and HF_HUB_OFFLINE, "
            "set labelled.path=<a local copy>, or do without the hub: labelled=files "
            "labelled.path=FILE, or experiment=synthetic_bios"
        )
