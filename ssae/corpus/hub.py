"""Datasets of the Hugging Face hub, streamed, or local copies of them."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ssae.artifact.manifest import file_sha256
from ssae.corpus.base import SPLITS, Corpus
from ssae.corpus.hub_part import Excerpt, HubPart, unreachable
from ssae.corpus.part import Document, Part

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub(Corpus):
    """Each split is an excerpt of a dataset; the keys are the arguments of `Excerpt`."""

    # Not content by themselves: `identity` says the same with the commit, without local paths.
    pool: dict[str, Any] = dataclasses.field(metadata={"content": False})
    seeds: dict[str, Any] = dataclasses.field(metadata={"content": False})
    subdomain_test: dict[str, Any] = dataclasses.field(metadata={"content": False})
    general_test: dict[str, Any] = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in SPLITS:
            self._excerpt(split)

    def identity(self) -> dict[str, Any]:
        """Return what is taken and the commits (or the files' sha256) it is taken from."""
        return {split: self._identify(split) for split in SPLITS}

    def pool_identity(self) -> dict[str, Any]:
        """Return the pool's dataset, and what leaves its documents out one by one."""
        characters = [self.min_characters, self.max_characters]
        return {"pool": self._identify("pool"), "characters": characters}

    def parts(self) -> Iterable[Part]:
        """Return the pool's files, or the one stream that holds `num_documents` documents."""
        whole = self._stream("pool")
        if whole.excerpt.num_documents is not None:
            return [whole]
        return [dataclasses.replace(whole, shard=i) for i in range(whole.num_shards)]

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Stream seeds and tests."""
        return {split: self._stream(split).documents() for split in SPLITS[1:]}

    def _stream(self, split: str) -> HubPart:
        excerpt = self._excerpt(split)
        folder = Path(excerpt.path)
        commit = None if folder.is_dir() else self._commit(split, excerpt)
        return HubPart(split, dataclasses.replace(excerpt, revision=commit))

    def _excerpt(self, split: str) -> Excerpt:
        given = getattr(self, split)
        known = [field.name for field in dataclasses.fields(Excerpt)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(
                    f"corpus.{split} has no key {key!r}; "
                    + (f"did you mean {near[0]}? " if near else "")
                    + f"the keys are {', '.join(known)}"
                )
        for key in ("path", "split", "text_field"):
            if given.get(key) is None:
                raise ValueError(f"corpus.{split} lacks {key}; set corpus.{split}.{key}=...")
        excerpt = Excerpt(**given)
        few = excerpt.num_documents is not None and excerpt.num_documents < 1
        if few or excerpt.skip_documents < 0:
            raise ValueError(
                f"corpus.{split} needs num_documents >= 1 and skip_documents >= 0, got "
                f"{excerpt.num_documents} and {excerpt.skip_documents}; "
                f"set corpus.{split}.num_documents=1000"
            )
        if excerpt.num_documents is None and excerpt.skip_documents:
            raise ValueError(
                f"corpus.{split}.skip_documents={excerpt.skip_documents} needs a num_documents: "
                "all documents are read file by file, and none of these is the first; "
                f"set corpus.{split}.num_documents=1000"
            )
        return excerpt

    def _identify(self, split: str) -> dict[str, Any]:
        excerpt = self._excerpt(split)
        folder = Path(excerpt.path)
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [[str(file.relative_to(folder)), file_sha256(file)] for file in files]
            return dataclasses.asdict(excerpt) | {"path": None, "files": names}
        return dataclasses.asdict(excerpt) | {"revision": self._commit(split, excerpt)}

    def _commit(self, split: str, excerpt: Excerpt) -> str:
        try:
            return commit_of(excerpt.path, excerpt.revision)
        # The transport's own exceptions change with the version of huggingface_hub.
        except Exception as error:
            raise unreachable(split, excerpt, error) from error


@functools.cache
def commit_of(path: str, revision: str | None) -> str:
    """Return a dataset's commit; the hub is asked once: a branch that moves must not divide a run.

    A full commit is not asked for.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    sha = HfApi().dataset_info(path, revision=revision).sha
    assert sha is not None
    return sha
