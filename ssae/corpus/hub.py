"""Datasets of the Hugging Face hub, streamed, or local copies of them."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from rich.progress import track

from ssae.artifact.manifest import file_sha256
from ssae.corpus.base import Corpus, Document, Splits

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Consecutive documents of one dataset.

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
        num_documents: how many to take after them.
    """

    path: str
    name: str | None = None
    split: str
    text_field: str
    source_field: str | None = None
    revision: str | None = None
    skip_documents: int = 0
    num_documents: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub(Corpus):
    """Each split is a selection from a dataset; the keys are the arguments of `Selection`."""

    # Not content by themselves: `identity` says the same with the commit, without local paths.
    pool: dict[str, Any] = dataclasses.field(metadata={"content": False})
    seeds: dict[str, Any] = dataclasses.field(metadata={"content": False})
    subdomain_test: dict[str, Any] = dataclasses.field(metadata={"content": False})
    general_test: dict[str, Any] = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in Splits._fields:
            self._selection(split)

    def identity(self) -> dict[str, Any]:
        """Return what is selected and the commits (or the files' sha256) it is selected from."""
        return {split: self._identify(split) for split in Splits._fields}

    def read(self) -> dict[str, Iterable[Document]]:
        """Stream the documents of each split."""
        return {split: self._documents(split) for split in Splits._fields}

    def _selection(self, split: str) -> Selection:
        given = getattr(self, split)
        known = [field.name for field in dataclasses.fields(Selection)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(
                    f"corpus.{split} has no key {key!r}; "
                    + (f"did you mean {near[0]}? " if near else "")
                    + f"the keys are {', '.join(known)}"
                )
        for key in ("path", "split", "text_field", "num_documents"):
            if given.get(key) is None:
                raise ValueError(f"corpus.{split} lacks {key}; set corpus.{split}.{key}=...")
        selection = Selection(**given)
        if selection.num_documents < 1 or selection.skip_documents < 0:
            raise ValueError(
                f"corpus.{split} needs num_documents >= 1 and skip_documents >= 0, got "
                f"{selection.num_documents} and {selection.skip_documents}; "
                f"set corpus.{split}.num_documents=1000"
            )
        return selection

    def _identify(self, split: str) -> dict[str, Any]:
        selection = self._selection(split)
        folder = Path(selection.path)
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [[str(file.relative_to(folder)), file_sha256(file)] for file in files]
            return dataclasses.asdict(selection) | {"path": None, "files": names}
        return dataclasses.asdict(selection) | {"revision": self._commit(split, selection)}

    def _commit(self, split: str, selection: Selection) -> str:
        revision = selection.revision
        if revision is not None and COMMIT.fullmatch(revision):
            return revision
        try:
            sha = HfApi().dataset_info(selection.path, revision=revision).sha
        # The transport's own exceptions change with the version of huggingface_hub.
        except Exception as error:
            raise _unreachable(split, selection, error) from error
        assert sha is not None
        return sha

    def _documents(self, split: str) -> Iterator[Document]:
        selection = self._selection(split)
        stop = selection.skip_documents + selection.num_documents
        rows = itertools.islice(self._rows(split, selection), selection.skip_documents, stop)
        count = 0
        for row in track(rows, f"reading {split}", total=selection.num_documents):
            count += 1
            text = row.get(selection.text_field)
            if not isinstance(text, str):
                raise ValueError(
                    f"corpus.{split}: column {selection.text_field!r} of {selection.path} holds "
                    f"no text (document {count}: {type(text).__name__}); its columns are "
                    f"{', '.join(map(str, row))}: set corpus.{split}.text_field=<one of these>"
                )
            source = row.get(selection.source_field) if selection.source_field else None
            yield {"text": text, "source": selection.path if source is None else str(source)}
        if count < selection.num_documents:
            raise ValueError(
                f"corpus.{split}: {selection.path} has only {selection.skip_documents + count} "
                f"documents in split {selection.split!r}, too few for skip_documents="
                f"{selection.skip_documents} and num_documents={selection.num_documents}; "
                f"lower corpus.{split}.num_documents"
            )

    def _rows(self, split: str, selection: Selection) -> Iterator[Any]:
        folder = Path(selection.path)
        try:
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                saved = datasets.load_from_disk(folder)
                yield from saved[selection.split] if isinstance(saved, dict) else saved
                return
            yield from datasets.load_dataset(
                selection.path,
                selection.name,
                split=selection.split,
                revision=None if folder.is_dir() else self._commit(split, selection),
                streaming=True,
            )
        except ValueError as error:
            # Unknown names and splits: the message lists those there are.
            raise ValueError(f"corpus.{split}: {selection.path}: {error}") from error
        except Exception as error:
            raise _unreachable(split, selection, error) from error


def _unreachable(split: str, selection: Selection, error: Exception) -> ValueError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"corpus.{split}: cannot read dataset {selection.path!r} (revision {selection.revision}): "
        f"{type(error).__name__}: {reason}; check the name, the network, `hf auth login` for a "
        f"gated one and HF_HUB_OFFLINE, set corpus.{split}.path to a local copy, or do without the "
        "hub: corpus=docstrings or corpus=files"
    )
