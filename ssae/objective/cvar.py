"""Conditional value at risk: the mean of the largest losses (Rockafellar and Uryasev 2000)."""

import dataclasses
import math

import torch
from torch import Tensor

from ssae.objective.base import Losses, Memory
from ssae.objective.groups import GroupObjective, Groups, check_share


@dataclasses.dataclass(frozen=True, kw_only=True)
class CVaR(GroupObjective):
    """R = the mean loss of the groups of largest loss that hold `share` of the mass.

        R = max_q sum_g q_g m_g   with   0 <= q_g <= mass_g / share,  sum_g q_g = 1

    over groups of tokens (objective/groups.py); in training SAEs as in arXiv 2010.05893, section 2,
    with the batch for the data.

    Args:
        share: of the mass, in (0, 1]; 1 is the plain mean.

    Raises:
        ValueError: a setting is out of its bounds.
    """

    share: float = dataclasses.field(metadata={"example": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share, 0.1, above=True)

    def group_weights(
        self, groups: Groups, losses: Losses, memory: Memory
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return q and R: whole groups from the largest loss on, the last one in part."""
        ranked = torch.where(groups.masses > 0, groups.means, -math.inf)
        order = ranked.argsort(descending=True, stable=True)
        masses = groups.masses[order]
        before = masses.cumsum(0) - masses
        q = torch.zeros_like(masses)
        q[order] = torch.minimum(masses, (self.share - before).clamp_min(0))
        q = q / q.sum()
        return q, (q * groups.means).sum(), {}
