"""An excerpt of a dataset: of the Hugging Face hub, streamed, or of a local copy."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from ssae.corpus.part import Document, Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Documents of one dataset: consecutive ones, or all.

    Args:
        path: hub repository, or a local directory: one saved with `save_to_disk`, or one with
            parquet or jsonl files.
        name: configuration of the dataset; null where it has one only.
        split: of the dataset.
        text_field: column with the text.
        source_field: column with the source; null names the dataset.
        revision: commit, tag or branch; null is the default branch. With a full commit the hub need
            not be asked what it is, so that a finished corpus is found again without a network.
        skip_documents: how many to pass over first.
        num_documents: how many to take after them, in one stream; null takes all, and of
            the pool all files at once.
    """

    path: str
    name: str | None = None
    split: str
    text_field: str
    source_field: str | None = None
    revision: str | None = None
    skip_documents: int = 0
    num_documents: int | None = None


@dataclasses.dataclass(frozen=True)
class HubPart(Part):
    """The documents of an excerpt, or those of one file of its dataset.

    Args:
        split: of the corpus, for messages.
        excerpt: its revision is a commit.
        shard: number of the file; null: all of them, one after the other.
    """

    split: str
    excerpt: Excerpt
    shard: int | None = None

    @property
    def num_shards(self) -> int:
        """Number of files that can be read apart."""
        return getattr(self._open(), "num_shards", 1)

    def documents(self) -> Iterator[Document]:
        """Yield every document.

        Raises:
            ValueError: the dataset cannot be read, holds no text, or too few documents.
        """
        excerpt, count = self.excerpt, 0
        for row in self._rows():
            count += 1
            yield self._document(row, count)
        if count < (excerpt.num_documents or 0):
            raise ValueError(
                f"corpus.{self.split}: {excerpt.path} has only {excerpt.skip_documents + count} "
                f"documents in split {excerpt.split!r}, too few for skip_documents="
                f"{excerpt.skip_documents} and num_documents={excerpt.num_documents}; "
                f"lower corpus.{self.split}.num_documents"
            )

    def pick(self, rows: Sequence[int]) -> Iterator[Document]:
        """Yield the documents number `rows`; a dataset saved to disk is not read for them."""
        saved = self._open()
        if not isinstance(saved, datasets.Dataset):
            yield from super().pick(rows)
            return
        for row in rows:
            yield self._document(saved[self.excerpt.skip_documents + row], row + 1)

    def _document(self, row: dict[str, Any], count: int) -> Document:
        excerpt = self.excerpt
        text = row.get(excerpt.text_field)
        if text is None and excerpt.text_field in row:
            text = ""  # left out, and counted, as too short
        if not isinstance(text, str):
            raise ValueError(
                f"corpus.{self.split}: column {excerpt.text_field!r} of {excerpt.path} holds "
                f"no text (document {count}: {type(text).__name__}); its columns are "
                f"{', '.join(map(str, row))}: set corpus.{self.split}.text_field=<one of these>"
            )
        source = row.get(excerpt.source_field) if excerpt.source_field else None
        return {"text": text, "source": excerpt.path if source is None else str(source)}

    def _rows(self) -> Iterator[Any]:
        stop, skip = self.excerpt.num_documents, self.excerpt.skip_documents
        with _explained(self.split, self.excerpt):
            stop = None if stop is None else skip + stop
            yield from itertools.islice(_examples(self._open()), skip, stop)

    def _open(self) -> Any:
        excerpt, folder = self.excerpt, Path(self.excerpt.path)
        with _explained(self.split, excerpt):
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                saved = datasets.load_from_disk(folder)
                return saved[excerpt.split] if isinstance(saved, dict) else saved
            stream = datasets.load_dataset(
                excerpt.path,
                excerpt.name,
                split=excerpt.split,
                revision=excerpt.revision,
                streaming=True,
            )
            if self.shard is None:
                return stream
            return stream.shard(num_shards=stream.num_shards, index=self.shard)


def _examples(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset, all of them.

    One after the other, a stream would give a worker process of a DataLoader its share of the files
    only; the pool's parts are shared out already (pool/blocks.py).
    """
    for batch in dataset.iter(batch_size=256):
        columns = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


@contextlib.contextmanager
def _explained(split: str, excerpt: Excerpt) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if str(error).startswith("corpus."):
            raise
        # Unknown names and splits: the message lists those there are.
        raise ValueError(f"corpus.{split}: {excerpt.path}: {error}") from error
    except Exception as error:
        raise unreachable(split, excerpt, error) from error


def unreachable(split: str, excerpt: Excerpt, error: Exception) -> ValueError:
    """Return the error of a dataset that cannot be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"corpus.{split}: cannot read dataset {excerpt.path!r} (revision {excerpt.revision}): "
        f"{type(error).__name__}: {reason}; check the name, the network, `hf auth login` for a "
        f"gated one and HF_HUB_OFFLINE, set corpus.{split}.path to a local copy, or do without the "
        "hub: corpus=docstrings or corpus=files"
    )
