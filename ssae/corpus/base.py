"""A corpus is four sets of documents: pool, seeds, and two test sets that training never sees.

    pool            general text, with the subdomain's documents somewhere in it
    seeds           a few documents of the subdomain
    subdomain_test  what the specialist is judged on
    general_test    what it must not forget

Seeds and tests are read whole and stored. The pool may be larger than memory and disk: it is read
in parts, in one pass (ssae/read_pool.py), and its text stays where it is.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np

from ssae.artifact.store import Artifact
from ssae.corpus.part import Document, Part
from ssae.settings import check_least, check_types

TESTS = ("subdomain_test", "general_test")
SPLITS = ("pool", "seeds", *TESTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What every corpus shares: which documents count, and what belongs to the subdomain.

    Args:
        min_characters: shorter documents are left out.
        max_characters: longer documents of the pool are left out (books, logs: one would use up a
            budget); null takes any.
        subdomain_source: the ground truth of retrieval: a document belongs to the subdomain iff its
            source is this one or lies below it ("scipy.stats" covers "scipy.stats.norm"); null when
            there are no labels.
        num_workers: processes that read the pool, on each rank; null is one per core, 8 at most.
    """

    keeps_text: ClassVar[bool] = False
    """Whether the text of the pool is stored, because making it again costs more than space."""

    min_characters: int
    max_characters: int | None
    subdomain_source: str | None
    num_workers: int | None = dataclasses.field(default=None, metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "corpus.")
        for name in ("max_characters", "num_workers"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(
                    f"corpus.{name} must be null or a whole number, got {value!r}; "
                    f"set corpus.{name}=null"
                )
        check_least(self, {"min_characters": (1, 100)}, "corpus.")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters must be at least min_characters={self.min_characters}, got "
                f"{self.max_characters}; set corpus.max_characters=null"
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(
                f"num_workers must be at least 0, got {self.num_workers}; "
                "set corpus.num_workers=null"
            )

    def check_shares(self, *names: str) -> None:
        """Raise ValueError for a setting, of these, that is not a share of the documents."""
        for name in names:
            share = getattr(self, name)
            if not 0 < share < 1:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1, got {share}; set corpus.{name}=0.2"
                )

    def identity(self) -> dict[str, Any]:
        """Return what the documents depend on beside the constructor's arguments."""
        raise NotImplementedError

    def pool_identity(self) -> dict[str, Any]:
        """Return what decides the pool's documents and their order, before any is held back.

        Embeddings depend on nothing else of a corpus, and outlive other seeds and tests.
        """
        return {"corpus": self, "identity": self.identity()}

    def parts(self) -> Iterable[Part]:
        """Return the parts of the pool, in a fixed order."""
        raise NotImplementedError

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Return {split: its documents} of the splits that have text of their own."""
        raise NotImplementedError

    def split_of(self, document: Document) -> str:
        """Return the split that a document of the pool's text belongs to."""
        return "pool"

    def fits(self, text: str) -> bool:
        """Whether a document of the pool is neither too short nor too long."""
        longest = self.max_characters or float("inf")
        return self.min_characters <= len(text) <= longest

    def in_subdomain(self, sources: Iterable[str]) -> np.ndarray | None:
        """Return the ground truth (num,) bool of documents with these sources; None: no labels."""
        if self.subdomain_source is None:
            return None
        return np.fromiter((self.is_subdomain(source) for source in sources), dtype=bool)

    def is_subdomain(self, source: str) -> bool:
        """Whether documents of this source are labelled as the subdomain's."""
        prefix = self.subdomain_source
        return prefix is not None and f"{source}.".startswith(f"{prefix}.")


FEATURES = datasets.Features({"text": datasets.Value("string"), "source": datasets.Value("string")})


def load_split(corpus: Artifact, name: str) -> datasets.Dataset:
    """Open seeds, subdomain_test, general_test or sample of a corpus: columns text, source."""
    return datasets.Dataset.load_from_disk(Path(corpus.path) / name)


def share_of_hash(text: str) -> float:
    """Map a text to [0, 1), uniformly and for ever the same: splits by it survive reordering."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def normalised(text: str) -> str:
    """Return the text without case, and with one space for any white space."""
    return " ".join(text.lower().split())


def fingerprint(text: str) -> str:
    """Return a hash that is the same for texts that differ in white space and case only."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()


def short_fingerprint(text: str) -> int:
    """Return the first 64 bits of `fingerprint`: a billion documents share one with odds of 3 %."""
    return int(fingerprint(text)[:16], 16)
