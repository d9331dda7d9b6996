"""A corpus is four sets of documents: pool, seeds, and two test sets that training never sees.

    pool            general text, with the subdomain's documents somewhere in it
    seeds           a few documents of the subdomain
    subdomain_test  what the specialist is judged on
    general_test    what it must not forget

Each is a `datasets.Dataset` with columns text and source (where the document comes from; a dotted
path in the embedded default, the `source` field of a file's lines otherwise).
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from ssae.artifact.store import Artifact, build

log = logging.getLogger(__name__)

Document = dict[str, str]


class Splits(NamedTuple):
    """The documents of a corpus; see the module docstring."""

    pool: datasets.Dataset
    seeds: datasets.Dataset
    subdomain_test: datasets.Dataset
    general_test: datasets.Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What every corpus shares: clean, check and store the documents that `read` returns.

    Args:
        min_characters: shorter documents are left out.
        subdomain_source: the ground truth of retrieval: a document belongs to the subdomain iff its
            source is this one or lies below it ("scipy.stats" covers "scipy.stats.norm"); null when
            there are no labels.
    """

    min_characters: int
    subdomain_source: str | None

    def __post_init__(self) -> None:
        if self.min_characters < 1:
            raise ValueError(
                f"min_characters must be at least 1, got {self.min_characters}; "
                "set corpus.min_characters=100"
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

    def read(self) -> dict[str, Iterable[Document]]:
        """Return the documents of each split, in a fixed order."""
        raise NotImplementedError

    def build(self, root: Path) -> Artifact:
        """Return the artifact that holds the splits, reading the documents if it is not there."""
        inputs = {"corpus": self, "identity": self.identity(), "format": 1}
        return build(root, "corpus", inputs, self._write)

    def in_subdomain(self, documents: datasets.Dataset) -> list[bool] | None:
        """Return the ground truth of each document, or None where the corpus has no labels."""
        if self.subdomain_source is None:
            return None
        return [self.is_subdomain(source) for source in documents["source"]]

    def is_subdomain(self, source: str) -> bool:
        """Whether documents of this source are labelled as the subdomain's."""
        prefix = self.subdomain_source
        return prefix is not None and f"{source}.".startswith(f"{prefix}.")

    def _write(self, folder: Path) -> dict[str, Any]:
        splits = {name: self._clean(documents) for name, documents in self.read().items()}
        for name, documents in splits.items():
            if not documents:
                raise ValueError(
                    f"corpus split {name!r} has no document of at least {self.min_characters} "
                    f"characters; check corpus.{name} or lower corpus.min_characters"
                )
        self._check_overlap(splits)
        held_back = {fingerprint(d["text"]) for n in Splits._fields[1:] for d in splits[n]}
        pool = [d for d in splits["pool"] if fingerprint(d["text"]) not in held_back]
        counts: dict[str, Any] = {"num_pool_dropped": len(splits["pool"]) - len(pool)}
        if not pool:
            raise ValueError("every document of corpus.pool is also a seed or a test document")
        for name in ("subdomain_test", "general_test"):
            # By hash, so that the first documents of a test split are a fair sample of it.
            splits[name].sort(key=lambda document: share_of_hash(document["text"]))
        for name, documents in (splits | {"pool": pool}).items():
            datasets.Dataset.from_list(documents, features=FEATURES).save_to_disk(folder / name)
            characters = sum(len(document["text"]) for document in documents)
            counts[name] = {"num_documents": len(documents), "num_characters": characters}
            log.info("%s: %d documents, %d characters", name, len(documents), characters)
        return counts

    def _clean(self, documents: Iterable[Document]) -> list[Document]:
        """Drop short documents and exact repeats (up to white space and case)."""
        kept: dict[str, Document] = {}
        for document in documents:
            if len(document["text"]) >= self.min_characters:
                kept.setdefault(fingerprint(document["text"]), document)
        return list(kept.values())

    def _check_overlap(self, splits: dict[str, list[Document]]) -> None:
        seeds = {fingerprint(document["text"]) for document in splits["seeds"]}
        for name in ("subdomain_test", "general_test"):
            shared = [d for d in splits[name] if fingerprint(d["text"]) in seeds]
            if shared:
                raise ValueError(
                    f"{len(shared)} seeds are also in {name} (first: {shared[0]['text'][:60]!r}); "
                    f"a test on its own seeds measures nothing: remove them from corpus.seeds or "
                    f"from corpus.{name}"
                )


FEATURES = datasets.Features({"text": datasets.Value("string"), "source": datasets.Value("string")})


def load_splits(artifact: Artifact) -> Splits:
    """Open the documents of a corpus artifact (memory-mapped Arrow)."""
    return Splits(
        *(datasets.Dataset.load_from_disk(artifact.path / name) for name in Splits._fields)
    )


def share_of_hash(text: str) -> float:
    """Map a text to [0, 1), uniformly and for ever the same: splits by it survive reordering."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def fingerprint(text: str) -> str:
    """Return a hash that is the same for texts that differ in white space and case only."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
