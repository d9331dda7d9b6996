"""The embedded pool of `ssae shift`: docstrings, with a few synthetic biographies among them."""

import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ssae.corpus.base import share_of_hash
from ssae.corpus.docstrings import Docstrings
from ssae.corpus.part import Document, Part
from ssae.labelled.synthetic import GENDERS, TRADES, biography

SOURCE = "synthetic_bios"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticBiosPool(Docstrings):
    """Docstrings of some packages and biographies of both genders in every trade.

    No biography of the pool, the seeds or the tests is one of the labelled documents: each set has
    a generator of its own.

    Args:
        num_biographies: in the pool.
        num_seeds: biographies that are the seeds.
        num_test: biographies that are the subdomain's test split.
    """

    num_biographies: int
    num_seeds: int
    num_test: int

    def identity(self) -> dict[str, Any]:
        """Return the versions of the packages and of the biographies."""
        return {**super().identity(), "biographies": 1}

    def parts(self) -> Iterable[Part]:
        """Return the modules, and the biographies."""
        return [*super().parts(), Biographies("pool", self.num_biographies)]

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Return seeds and the subdomain's test."""
        sizes = {"seeds": self.num_seeds, "subdomain_test": self.num_test}
        return {name: Biographies(name, size).documents() for name, size in sizes.items()}

    def split_of(self, document: Document) -> str:
        """Return general_test for a share of the docstrings."""
        if self.is_subdomain(document["source"]):
            return "pool"
        share = share_of_hash(document["text"])
        return "general_test" if share < self.general_test_share else "pool"


@dataclasses.dataclass(frozen=True)
class Biographies(Part):
    """Biographies of all trades, by half about men.

    Args:
        name: of the set; another name gives other biographies.
        num_documents: how many.
    """

    name: str
    num_documents: int

    def documents(self) -> Iterator[Document]:
        """Yield every biography."""
        generator = random.Random(f"corpus {self.name}")
        for _ in range(self.num_documents):
            trade, gender = generator.choice(list(TRADES)), generator.choice(list(GENDERS))
            text = biography(generator, trade, gender, purity=1.0, cues=1.0)
            yield {"text": text, "source": f"{SOURCE}.{trade}"}
