"""A pool in files, whose subdomain is that of labelled documents: their seeds and tests."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ssae.corpus.base import TESTS, fingerprint, share_of_hash
from ssae.corpus.files import Files
from ssae.corpus.part import Document
from ssae.labelled.base import Labelled


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledSeeds(Files):
    """Seeds and the subdomain's test are labelled documents, by document hash.

    They are taken from the two large groups, in which attribute and label agree: all that someone
    has whose data is biased, and so that none of the rare documents is lost for testing. `ssae
    shift` neither trains nor tests a classifier on them.

    Args:
        labelled: the documents.
        num_seeds: how many of them are seeds.
        num_test: how many others are the subdomain's test split.
    """

    seeds: None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    subdomain_test: None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    labelled: Labelled
    num_seeds: int
    num_test: int

    def identity(self) -> dict[str, Any]:
        """Return the checksums of the pool and of the labelled documents."""
        return {**super().identity(), "labelled": self.labelled.identity()}

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Return seeds and the subdomain's test, and the general one if it is a file.

        Raises:
            ValueError: there are too few labelled documents.
        """
        groups = self.labelled.load()
        by_fingerprint = {
            fingerprint(groups.texts[row]): groups.texts[row]
            for row in groups.is_ambiguous.nonzero()[0]
            if len(groups.texts[row]) >= self.min_characters
        }
        texts = [by_fingerprint[key] for key in sorted(by_fingerprint, key=share_of_hash)]
        wanted = self.num_seeds + self.num_test
        if len(texts) < 2 * wanted:
            raise ValueError(
                f"corpus.num_seeds={self.num_seeds} and corpus.num_test={self.num_test} must leave "
                f"half of the {len(texts)} documents in which label and attribute agree; set "
                "corpus.num_seeds=50 corpus.num_test=200"
            )
        name = self.labelled.label
        documents: list[Document] = [{"text": text, "source": name} for text in texts[:wanted]]
        tests = {name: self._documents(name) for name in TESTS[1:] if getattr(self, name)}
        first, rest = documents[: self.num_seeds], documents[self.num_seeds :]
        return {"seeds": first, "subdomain_test": rest, **tests}
