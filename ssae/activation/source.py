"""Where the batches of training come from; `activation=` chooses one of the two.

activation=shards   harvested to disk first, read in windows (datamodule.py)
activation=stream   made by the language model while the SAE trains (stream.py)
"""

import logging
from abc import ABC, abstractmethod
from typing import Any

from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens
from ssae.process.ranks import world_size

log = logging.getLogger(__name__)

ORIGIN_BYTES = 3 * 4 + 8
"""Of a token in a window, beside its activations: where it comes from, and its place."""


class Source(ABC):
    """Batches of tokens that are a function of the step: nothing is stored to resume them."""

    num_tokens: int
    """Tokens of an epoch."""
    pin_memory: bool = False
    """Whether batches lie in memory that a GPU should copy from."""

    @abstractmethod
    def check_ranks(self, size: int) -> None:
        """Refuse a number of ranks that cannot share a batch evenly.

        Raises:
            ValueError: names a batch size or a number of ranks that works.
        """

    @abstractmethod
    def batch(self, step: int, rank: int, size: int) -> Tokens:
        """Return the slice of the step's batch that belongs to `rank` of `size`.

        The slices of all ranks, in order, are the batch of a single rank.
        """

    @abstractmethod
    def where(self, step: int, rank: int, size: int, row: int) -> str:
        """Return where a row of `batch(step, rank, size)` comes from, in words."""

    def close(self) -> None:  # noqa: B027 - most have nothing to free
        """Free what was held to make batches; `batch` may be called again."""


class Supply(ABC):
    """Settings of a source; what `study.activation` is. Its fields enter the hash of `train`."""

    @property
    @abstractmethod
    def sample_tokens(self) -> int | None:
        """How much of an arm's text is harvested to disk: a random sample, or None for all of it.

        Initial weights, scale and recycling are decided on the harvest.
        """

    @abstractmethod
    def check_batch(self, batch_size_tokens: int) -> None:
        """Refuse a batch size that batches cannot have, before the hours that come before training.

        Raises:
            ValueError: names a setting that works.
        """

    def check_rows(self, context_length: int) -> None:  # noqa: B027 - most take rows of any length
        """Refuse rows that are too long for the settings, likewise.

        Raises:
            ValueError: names a setting that works.
        """

    @abstractmethod
    def source(self, study: Any, arm: str, activations: Activations) -> Source:
        """Return the batches that an arm of the study trains on.

        Args:
            study: a `Study`.
            arm: the arm.
            activations: what was harvested for it.

        Raises:
            ValueError: the settings do not fit the study.
        """


def announce_windows(
    arm: str, activations: Activations, window_tokens: int, reads_ahead: bool
) -> None:
    """Log what the windows of an arm's activations take of a rank's memory."""
    num_tokens, num_ranks = min(len(activations), window_tokens), world_size()
    row_bytes = activations.d_in * activations.dtype.itemsize + ORIGIN_BYTES
    log.info(
        "%s: windows of %s tokens, %.2g GB in memory%s%s",
        arm, f"{num_tokens:,}", num_tokens * row_bytes / num_ranks / 1e9,
        f" of each of {num_ranks} ranks" if num_ranks > 1 else "",
        ", and as much for the next one" if reads_ahead and num_tokens < len(activations) else "",
    )  # fmt: skip
