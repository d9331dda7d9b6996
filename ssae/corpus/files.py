"""Your own documents: .jsonl, .jsonl.gz, .txt and .parquet files (see text_files.py)."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ssae.artifact.manifest import file_sha256
from ssae.corpus.base import Corpus, Document, Splits, fingerprint, share_of_hash
from ssae.corpus.text_files import find_files, read_file


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
            name: [[file.name, file_sha256(file)] for file in self._files(name)]
            for name in Splits._fields
        }

    def read(self) -> dict[str, Iterable[Document]]:
        """Read the files and hold out the test documents that have no file of their own."""
        pool, general_test = self._documents("pool"), self._documents("general_test")
        seeds, subdomain_test = self._documents("seeds"), self._documents("subdomain_test")
        if self.subdomain_test is None:
            every_seed = list(seeds)
            held_out = [share_of_hash(fingerprint(d["text"])) < self.test_share for d in every_seed]
            seeds = [d for d, out in zip(every_seed, held_out, strict=True) if not out]
            subdomain_test = [d for d, out in zip(every_seed, held_out, strict=True) if out]
            if not seeds or not subdomain_test:
                raise ValueError(
                    f"holding out test_share={self.test_share} of {len(every_seed)} seeds leaves "
                    f"{len(seeds)} seeds and {len(subdomain_test)} test documents; give the test "
                    "its own file (corpus.subdomain_test=FILE), more seeds, or another "
                    "corpus.test_share"
                )
        else:
            seeds, subdomain_test = list(seeds), list(subdomain_test)
        if self.general_test is None:
            taken = {fingerprint(d["text"]) for d in (*seeds, *subdomain_test)}
            general_test = (d for d in self._documents("pool") if self._held_out(d, taken))
        # `build` drops from the pool what is in a test split.
        return {
            "pool": pool,
            "seeds": seeds,
            "subdomain_test": subdomain_test,
            "general_test": general_test,
        }

    def _held_out(self, document: Document, taken: set[str]) -> bool:
        key = fingerprint(document["text"])
        outside = not self.is_subdomain(document["source"])
        return outside and key not in taken and share_of_hash(key) < self.general_test_share

    def _files(self, name: str) -> list[Path]:
        paths = getattr(self, name)
        return [] if paths is None else find_files(paths, f"corpus.{name}")

    def _documents(self, name: str) -> Iterator[Document]:
        for file in self._files(name):
            yield from read_file(file, self.text_field, self.source_field)
