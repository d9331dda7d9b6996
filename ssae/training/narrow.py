"""Says once that an objective's weights have come to rest on a few tokens, or vanished."""

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

FEW = 0.01
"""Of the batch's tokens, and of the weight they should have."""
PATIENCE = 2, 10
"""Logs one after the other, at least and at most; between, a fifth of those of the run."""


class NarrowWeights:
    """Watches effective_sample_size and mean_weight (objective/term.py) of what is logged.

    Under FEW, gradients are those of a handful of tokens, or of none.

    Args:
        num_logs: there will be in the run.
    """

    def __init__(self, num_logs: int) -> None:
        least, most = PATIENCE
        self.patience = max(least, min(most, num_logs // 5))
        self._num_logs = 0

    def watch(self, row: Mapping[str, float]) -> None:
        """Look at what was logged; warn once, of `patience` narrow ones in a row."""
        if self._num_logs >= self.patience:
            return
        share, mean = row.get("effective_sample_size", 1.0), row.get("mean_weight", 1.0)
        is_fine = share >= FEW and mean >= FEW  # not where weights are so small that it is nan
        self._num_logs = 0 if is_fine else self._num_logs + 1
        if self._num_logs == self.patience and not mean >= FEW:
            log.warning(
                "the objective's weights have long summed to %.2g of what they should: losses fall "
                "faster than its normaliser forgets; set objective.rho=1",
                mean,
            )
        elif self._num_logs == self.patience:
            log.warning(
                "the objective's weights have long been on %.2g %% of the tokens (effective sample "
                "size; the largest weight is %.2g of all): set a smaller objective.tilt or "
                "objective.balance, or a larger objective.share or training.batch_size_tokens",
                100 * share,
                row["largest_weight"],
            )
