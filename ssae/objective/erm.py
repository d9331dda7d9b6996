"""Empirical risk: the plain mean."""

import dataclasses

from torch import Tensor

from ssae.objective.base import Losses, Memory, Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class ERM(Objective):
    """R = mean_i losses_i."""

    def __call__(self, losses: Losses, memory: Memory) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of this rank's losses."""
        return losses.totals.mean(), {}
