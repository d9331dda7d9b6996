"""Read documents from files, one at a time, and say exactly where one is wrong.

    .jsonl, .jsonl.gz   a document a line, in the field `text_field`; blank lines are skipped
    .txt                a document a paragraph: blank lines separate documents
    .parquet            a document a row, in the column `text_field`

Text is kept as it is: no Unicode normalisation, no stripping. A text of null is an empty one, which
every corpus leaves out and counts as too short.
"""

import codecs
import dataclasses
import difflib
import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from ssae.corpus.part import Document, Part

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".parquet")


def find_files(paths: str | list[str], option: str) -> list[Path]:
    """Return the files of one path or several; a directory stands for all it holds, sorted.

    Raises:
        ValueError: a path does not exist, or is not of a kind in SUFFIXES.
    """
    files: list[Path] = []
    for path in [Path(p).expanduser() for p in ([paths] if isinstance(paths, str) else paths)]:
        if path.is_dir():
            inside = sorted(f for f in path.rglob("*") if f.is_file() and _suffix(f) is not None)
            if not inside:
                raise ValueError(f"{option}: {path} holds no file of {', '.join(SUFFIXES)}")
            files += inside
        elif not path.exists():
            raise ValueError(f"{option}: there is no {path}; {_nearby(path)}")
        elif _suffix(path) is None:
            raise ValueError(
                f"{option}: cannot read {path}; its name must end in one of {', '.join(SUFFIXES)}"
            )
        else:
            files.append(path)
    if not files:
        raise ValueError(f"{option} names no file; set {option}=FILE or {option}=[FILE,FILE]")
    return files


@dataclasses.dataclass(frozen=True)
class TextFile(Part):
    """The documents of a file; one without a source has the file's name.

    Args:
        path: of a kind in SUFFIXES.
        text_field: field of a line, column of a parquet file.
        source_field: likewise.
        is_one_of_many: an empty file, as programs that write shards leave behind, is passed over.
    """

    path: Path
    text_field: str
    source_field: str
    is_one_of_many: bool = False

    def documents(self) -> Iterator[Document]:
        """Yield every document.

        Raises:
            ValueError: names the file and the line (or row) that cannot be read; or it is empty.
        """
        empty = True
        for document in self._read():
            empty = False
            yield document
        if empty:
            message = f"{self.path} is empty: it holds no document"
            if not self.is_one_of_many:
                raise ValueError(message)
            log.warning(message)

    def pick(self, rows: Sequence[int]) -> Iterator[Document]:
        """Yield the documents number `rows`; of a parquet file only their row groups are read."""
        if _suffix(self.path) == ".parquet":
            return _read_parquet(self.path, self.text_field, self.source_field, rows)
        return super().pick(rows)

    def _read(self) -> Iterator[Document]:
        read = _READERS[_suffix(self.path) or ""]
        return read(self.path, self.text_field, self.source_field)


def _read_jsonl(path: Path, text_field: str, source_field: str) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where}: not JSON ({error}): {_excerpt(line)}; every line of a .jsonl file is "
                'one object like {"text": "..."}'
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: a line must be an object like {{{text_field!r}: ...}}, got a "
                f"{type(row).__name__}: {_excerpt(line)}"
            )
        yield _document(row, where, path, text_field, source_field)


def _read_txt(path: Path, text_field: str, source_field: str) -> Iterator[Document]:
    paragraph: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            paragraph.append(line.rstrip("\r\n"))
        elif paragraph:
            yield {"text": "\n".join(paragraph), "source": path.name}
            paragraph = []
    if paragraph:
        yield {"text": "\n".join(paragraph), "source": path.name}


def _read_parquet(
    path: Path, text_field: str, source_field: str, rows: Sequence[int] | None = None
) -> Iterator[Document]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise _no_field(str(path), text_field, names)
            columns = [name for name in (text_field, source_field) if name in names]
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            wanted = np.arange(starts[-1]) if rows is None else np.asarray(rows)
            for group in range(file.num_row_groups):
                inside = wanted[(wanted >= starts[group]) & (wanted < starts[group + 1])]
                if not len(inside):
                    continue
                first = int(starts[group])
                for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
                    here = inside[(inside >= first) & (inside < first + len(batch))]
                    chosen = batch.take(pyarrow.array(here - first)).to_pylist()
                    for row, number in zip(chosen, here.tolist(), strict=True):
                        where = f"{path}, row {number + 1}"
                        yield _document(row, where, path, text_field, source_field)
                    first += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error


_READERS = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line). Lines end at a newline only, not at what else Unicode calls one."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x} at column "
            f"{error.start + 1}); convert it: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be read beyond line {number}: {error}; copy or download it again"
        ) from error


def _document(
    row: dict[str, Any], where: str, path: Path, text_field: str, source_field: str
) -> Document:
    if text_field not in row:
        raise _no_field(where, text_field, list(row))
    text = "" if row[text_field] is None else row[text_field]
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: {text_field!r} must be a string, got a {type(text).__name__}: "
            f"{_excerpt(repr(text))}; set corpus.text_field=<the field with the text>"
        )
    source = row.get(source_field)
    source = path.name if source is None else str(source)
    try:
        (text + source).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: half of a surrogate pair (\\u{ord(error.object[error.start]):x}), which no "
            "UTF-8 file can hold; repair or remove the line"
        ) from error
    return {"text": text, "source": source}


def _no_field(where: str, text_field: str, names: list[str]) -> ValueError:
    likely = difflib.get_close_matches(text_field, names, n=1) or names[:1] or ["NAME"]
    return ValueError(
        f"{where}: no field {text_field!r}; it has {', '.join(map(repr, names)) or 'none'}: "
        f"set corpus.text_field={likely[0]}"
    )


def _suffix(path: Path) -> str | None:
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either (relative paths start at {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.4) or names[:5]
    return f"{folder.absolute()} holds {', '.join(near) or 'nothing'}"


def _excerpt(text: str) -> str:
    return repr(text.strip()[:60])
