"""Your own documents: .jsonl, .jsonl.gz, .txt and .parquet files (see text_files.py)."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssae.artifact.manifest import file_sha256
from ssae.corpus.base import SPLITS, TESTS, Corpus, fingerprint, share_of_hash
from ssae.corpus.part import Document, Part
from ssae.corpus.text_files import TextFile, find_files


def _path(**arguments: Any) -> Any:
    # The bytes decide the content (`identity`), not the place they lie in.
    return dataclasses.field(metadata={"content": False}, **arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Corpus):
    """Each split is a file, a directory of files, or a list of these.

    Args:
        pool: general text.
        seeds: documents of the subdomain.
        subdomain_test: null holds out the share `test_share` of the seeds, by document hash.
        general_test: null holds out the share `general_test_share` of the pool outside the
            subdomain, by document hash.
        test_share: in (0, 1); ignored beside a subdomain_test.
        general_test_share: in (0, 1); ignored beside a general_test.
        text_field: field of a line (column of a parquet file) with the text.
        source_field: field with the source; the file's name stands in where there is none.
    """

    pool: str | list[str] = _path()
    seeds: str | list[str] = _path()
    subdomain_test: str | list[str] | None = _path(default=None)
    general_test: str | list[str] | None = _path(default=None)
    test_share: float
    general_test_share: float
    text_field: str
    source_field: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("test_share", "general_test_share")

    def identity(self) -> dict[str, Any]:
        """Return the sha256 of every file, with its name."""
        return {
            name: [[file.name, file_sha256(file)] for file in self._files(name)] for name in SPLITS
        }

    def pool_identity(self) -> dict[str, Any]:
        """Return the pool's files, and what leaves its documents out one by one."""
        held_out = self.general_test is None
        return {
            "pool": self.identity()["pool"],
            "characters": [self.min_characters, self.max_characters],
            "fields": [self.text_field, self.source_field],
            "held_out": [self.general_test_share, self.subdomain_source] if held_out else None,
        }

    def parts(self) -> Iterable[Part]:
        """Return the files of the pool."""
        return self._text_files("pool")

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Read seeds and tests; without a file of its own the subdomain's test is held out."""
        seeds = list(self._documents("seeds"))
        tests = {name: self._documents(name) for name in TESTS if getattr(self, name) is not None}
        if self.subdomain_test is None:
            held_out = [share_of_hash(fingerprint(d["text"])) < self.test_share for d in seeds]
            test = [d for d, out in zip(seeds, held_out, strict=True) if out]
            left = [d for d, out in zip(seeds, held_out, strict=True) if not out]
            if not left or not test:
                raise ValueError(
                    f"holding out test_share={self.test_share} of {len(seeds)} seeds leaves "
                    f"{len(left)} seeds and {len(test)} test documents; give the test "
                    "its own file (corpus.subdomain_test=FILE), more seeds, or another "
                    "corpus.test_share"
                )
            seeds, tests["subdomain_test"] = left, iter(test)
        return {"seeds": seeds, **tests}

    def split_of(self, document: Document) -> str:
        """Return general_test for the share of the pool that is held out, by document hash."""
        if self.general_test is not None or self.is_subdomain(document["source"]):
            return "pool"
        share = share_of_hash(fingerprint(document["text"]))
        return "general_test" if share < self.general_test_share else "pool"

    def _files(self, name: str) -> list[Path]:
        paths = getattr(self, name)
        return [] if paths is None else find_files(paths, f"corpus.{name}")

    def _documents(self, name: str) -> Iterator[Document]:
        for file in self._text_files(name):
            yield from file.documents()

    def _text_files(self, name: str) -> list[TextFile]:
        files = self._files(name)
        fields = self.text_field, self.source_field
        return [TextFile(file, *fields, is_one_of_many=len(files) > 1) for file in files]
