"""Says once that an objective's weights have come to rest on a few tokens."""

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

FEW = 0.01
"""Effective share of the batch's tokens."""
PATIENCE = 10
"""Logs one after the other."""


class NarrowWeights:
    """Watches effective_sample_size: under FEW, gradients are those of a handful of tokens."""

    def __init__(self) -> None:
        self._num_logs = 0

    def watch(self, row: Mapping[str, float]) -> None:
        """Look at what was logged; warn at the PATIENCE-th narrow one in a row, and never again."""
        if self._num_logs >= PATIENCE:
            return
        share = row.get("effective_sample_size", 1.0)
        self._num_logs = self._num_logs + 1 if share < FEW else 0
        if self._num_logs == PATIENCE:
            log.warning(
                "the objective's weights have long been on %.2g %% of the tokens (effective sample "
                "size; the largest weight is %.2g of all): set a smaller objective.tilt or "
                "objective.balance, or a larger objective.share or training.batch_size_tokens",
                100 * share,
                row["largest_weight"],
            )
