"""Labelled documents in files: .jsonl, .jsonl.gz, .csv or .parquet."""

import dataclasses
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from ssae.artifact.manifest import file_sha256
from ssae.labelled.base import Labelled, Row, checked_row, explained

READERS = {
    ".jsonl": "json", ".jsonl.gz": "json", ".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledFile(Labelled):
    """A document a line or row of one file.

    Args:
        path: of the file; its bytes decide, not where it lies.
        text_field: with the text.
        split_field: with the name of a split; rows without it have none.
        names: {field: what its numbers 0, 1, ... stand for}.
    """

    path: str = dataclasses.field(metadata={"content": False})
    text_field: str
    split_field: str
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Return the checksum of the file."""
        return {"sha256": file_sha256(self._file())}

    def rows(self) -> Iterator[Row]:
        """Yield every row.

        Raises:
            ValueError: the file cannot be read, or lacks a field.
        """
        file = self._file()
        fields = (self.text_field, self.label, self.spurious, self.split_field)
        with explained(str(file)):
            # Escaped: a name with brackets is no pattern.
            stored = datasets.load_dataset(
                _reader(file), data_files=glob.escape(str(file)), split="train", streaming=True
            )
            for number, row in enumerate(stored, start=1):
                yield checked_row(dict(row), number, str(file), fields, self.names)

    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise ValueError(
                f"labelled.path: there is no file {file} (relative paths start at {Path.cwd()}); "
                "set labelled.path=<file>"
            )
        if _reader(file) is None:
            raise ValueError(
                f"labelled.path must end in one of {', '.join(READERS)}, got {file}; "
                "set labelled.path=<such a file>"
            )
        return file


def _reader(file: Path) -> Any:
    return next((name for end, name in READERS.items() if file.name.endswith(end)), None)
