"""Near duplicates: texts that share most of their pieces of 9 characters, in any language.

Case and white space are ignored. With P the set of a text's pieces:

    resemblance(a, b) = |P_a & P_b| / |P_a | P_b|             copies of each other (Broder 1997),
                                                              estimated by MinHash
    overlap(a, b)     = |P_a & P_b| / min(|P_a|, |P_b|)       one inside the other as well: an
                                                              abstract in a page, a part of a paper
"""

import zlib
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash, RMinHashDeduplicator  # pyright: ignore[reportAttributeAccessIssue]

from ssae.corpus.base import normalised

PIECE = 9  # characters: words of most languages, and of those that write no spaces
NUM_PERMUTATIONS, BANDS = 128, 32


class Copies:
    """Finds what overlaps with a text that is held out, or resembles one taken before.

    Args:
        threshold: overlap, or resemblance, that makes a copy; None: nothing does.
        held_out: texts that no copy may be taken of.
    """

    def __init__(self, threshold: float | None, held_out: Sequence[str]) -> None:
        self.threshold, self._sketch = threshold, None
        if threshold is None:
            return
        self._held_out = HeldOut(held_out)
        # 32 bands of 4 find all candidates above 0.6; they are compared by their whole sketches.
        self._taken = RMinHashDeduplicator(threshold, NUM_PERMUTATIONS, True, BANDS, seed=0)

    def reason(self, document: int, text: str) -> str | None:
        """Return what the document is a copy of, as the manifest calls it; None: it is none."""
        if self.threshold is None:
            return None
        pieces = _pieces(text)
        if self._held_out.largest_overlap(pieces) >= self.threshold:
            return "num_near_held_out"
        [self._sketch] = RMinHash.from_token_sets([pieces], NUM_PERMUTATIONS, 0)
        resembles = self._taken.is_duplicate(str(document), self._sketch)
        return "num_near_duplicates" if resembles else None

    def take(self, document: int) -> None:
        """Count the document that was looked at last as taken."""
        if self._sketch is not None:
            self._taken.add(str(document), self._sketch)


class HeldOut:
    """The pieces of texts, 8 bytes each, to look a document's up in.

    Args:
        texts: seeds and tests.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        hashed = [_hashes(_pieces(text)) for text in texts]
        self._sizes = np.array([len(own) for own in hashed], dtype=np.int64)
        owners = np.repeat(np.arange(len(hashed), dtype=np.int32), self._sizes)
        hashes = np.concatenate([*hashed, np.empty(0, np.uint32)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def largest_overlap(self, pieces: Sequence[str]) -> float:
        """Return the largest overlap with one of the texts; 0 without any."""
        own = _hashes(pieces)
        first = np.searchsorted(self._hashes, own, "left")
        count = np.searchsorted(self._hashes, own, "right") - first
        if not count.sum():
            return 0.0
        # The places first, first + 1, ..., first + count - 1 of every piece, one after the other.
        starts = np.repeat(first - np.cumsum(count) + count, count)
        places = starts + np.arange(count.sum())
        shared = np.bincount(self._owners[places], minlength=len(self._sizes))
        return float((shared / np.minimum(self._sizes, len(own))).max())


def _pieces(text: str) -> list[str]:
    text = normalised(text)
    return [text[start : start + PIECE] for start in range(max(1, len(text) - PIECE + 1))]


def _hashes(pieces: Sequence[str]) -> np.ndarray:
    """Return the distinct hashes of pieces, uint32, ascending."""
    found = (zlib.crc32(piece.encode("utf-8", "surrogatepass")) for piece in pieces)
    return np.unique(np.fromiter(found, np.uint32, len(pieces)))
