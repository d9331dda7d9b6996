"""Parts: what a pool is read in, a file or a shard of a dataset each."""

from collections.abc import Iterator, Sequence

Document = dict[str, str]
"""{"text", "source"}; the source says where the document comes from."""


class Part:
    """Documents in a fixed order; a variant overrides `documents`, and `pick` if it can do better.

    Parts are sent to the processes that read them.
    """

    def documents(self) -> Iterator[Document]:
        """Yield every document."""
        raise NotImplementedError

    def pick(self, rows: Sequence[int]) -> Iterator[Document]:
        """Yield the documents number `rows`, which ascend; reads no further than the last."""
        wanted = iter(rows)
        row = next(wanted, None)
        for number, document in enumerate(self.documents()):
            if row is None:
                return
            if number == row:
                yield document
                row = next(wanted, None)
