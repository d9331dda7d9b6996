"""Group distributionally robust optimisation, online (arXiv 1911.08731, section 4)."""

import dataclasses

import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.metric.frequency import BANDS
from ssae.objective.base import Losses, Memory
from ssae.objective.groups import GroupObjective, Groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupDRO(GroupObjective):
    """R = sum_g q_g m_g with weights q that follow the losses of the groups over the whole run.

        q_g <- q_g exp(step_size m_g) for the groups of the batch, then q <- q / sum q

    from q_g proportional to N_g ** (1 - balance), N_g the tokens of g in the arm's text. The groups
    that a batch does not have keep their weight and wait; those it has share all of the gradient,
    in proportion to q.

    Args:
        step_size: of the weights; 0 keeps the first ones.

    Raises:
        ValueError: a setting is out of its bounds, or level=token: a token never comes again.
    """

    step_size: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level == "token":
            raise ValueError(
                "objective.level=token leaves group_dro no group that is seen twice; "
                "set objective.level=frequency_band"
            )
        if not 0 <= self.step_size < float("inf"):
            raise ValueError(
                f"objective.step_size must be finite and not negative, got {self.step_size}; "
                "set objective.step_size=0.01"
            )

    def memory(self, rows: Rows | None) -> Memory:
        """Return what the groups need, and log_q of all groups; -inf of those without a token."""
        memory = super().memory(rows)
        assert rows is not None
        sizes = rows.document_counts() if self.level == "document" else rows.token_counts
        if self.level == "frequency_band":
            sizes = torch.bincount(memory.band, sizes.double(), minlength=len(BANDS))
        q = torch.where(sizes > 0, sizes.double() ** (1 - self.balance), 0)
        memory.register_buffer("log_q", (q / q.sum()).log())
        return memory

    def group_weights(
        self, groups: Groups, losses: Losses, memory: Memory
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return q of the batch's groups, R, and the largest weight of all groups."""
        # Empty places add 0 to the weight of key 0.
        memory.log_q.index_add_(0, groups.keys, self.step_size * groups.means)
        memory.log_q.sub_(memory.log_q.logsumexp(0))
        q = torch.where(groups.masses > 0, memory.log_q[groups.keys], -torch.inf).softmax(0)
        return q, (q * groups.means).sum(), {"largest_group_weight": memory.log_q.amax().exp()}
