"""Groups of tokens: what the objectives that weigh have in common.

Every objective here is, over the groups g of the global batch,

    m_g = mean of the losses of g's tokens         n_g = number of g's tokens in the batch
    mass_g = n_g ** (1 - balance) / their sum      balance 0: every token the same, 1: every group
    gradient = sum_g q_g grad m_g                  q = weights from m and mass, which vary

and a variant gives q. At level=token every token is a group of its own, balanced by its type: its
mass is n_type ** -balance. Types are counted in the batch, not in the text: weights by counts of
the text would make a type of one token as heavy as one of ten thousand, and gradients that noisy
(an effective sample of 13 % instead of 61 % at balance 1, 1024 tokens of docstrings).
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.metric.frequency import frequency_of
from ssae.objective.base import Losses, Memory, Objective
from ssae.process.ranks import all_gather, rank
from ssae.settings import check_types

LEVELS = ("token", "document", "token_type", "frequency_band")
WEIGHED = ("total", "recon")


class Groups(NamedTuple):
    """The groups of a global batch of n tokens, in n places; places that no group has are empty."""

    place: Tensor
    """(n,) int64, of each token's group."""
    num_tokens: Tensor
    """(n,) of each group in the batch; 0 of empty places."""
    means: Tensor
    """(n,) m; 0 in empty places."""
    masses: Tensor
    """(n,), they sum to 1; 0 in empty places."""
    keys: Tensor
    """(n,) int64: the token type, document or band that a group is; 0 in empty places."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupObjective(Objective):
    """Weighs groups of tokens of the global batch; a variant overrides `group_weights`.

    All ranks gather the losses (16 bytes a token), compute the same weights w in float64, and each
    back-propagates mean_i(w_i losses_i) over its own tokens with w held fixed; averaged over ranks
    that is the gradient of the objective over the global batch, exactly. (Averaging the gradients
    of local objectives is not: arXiv 2007.01162 is about one sum.)

    Args:
        level: what a group is: a token, a document, all tokens of a token_type (one id of the
            vocabulary), or those whose types lie in a frequency_band of the text, by decades.
        balance: 0 lets every token of the batch count the same, 1 every group; what lies between
            is geometric.
        weighed: total, or recon: the sparsity penalty keeps its plain mean.

    Raises:
        ValueError: a level or a choice that does not exist, or balance outside of [0, 1].
    """

    level: str = "token"
    balance: float = 0.0
    weighed: str = "total"

    def __post_init__(self) -> None:
        check_types(self, "objective.")
        check_choice("level", self.level, LEVELS)
        check_choice("weighed", self.weighed, WEIGHED)
        check_share("balance", self.balance, 0)

    def memory(self, rows: Rows | None) -> Memory:
        """Return band (vocab_size,) of every token type in the text, at level=frequency_band."""
        if self.level != "frequency_band":
            return Memory({})
        assert rows is not None
        return Memory({"band": frequency_of(rows.token_counts).bands})

    def group_weights(
        self, groups: Groups, losses: Losses, memory: Memory
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return q (n,), the objective's value and what to log.

        q sums to 1, but for a normaliser that is not the batch's own, and is 0 in empty places.
        """
        raise NotImplementedError

    def __call__(self, losses: Losses, memory: Memory) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss whose gradient is the objective's and whose value is the objective's.

        Logged: risk, the objective's value without what `weighed` leaves out;
        effective_sample_size = (sum w)^2 / sum w^2 / n in (0, 1]; largest_weight = max w / sum w.
        """
        own = losses.totals if self.weighed == "total" else losses.errors
        with torch.no_grad():
            groups = self._groups(own, losses, memory)
            q, risk, logged = self.group_weights(groups, losses, memory)
            shares = (q / groups.num_tokens.clamp_min(1))[groups.place]
            start = rank() * len(own) if len(shares) > len(own) else 0
            weights = (len(shares) * shares[start : start + len(own)]).to(own.dtype)
            logged |= {
                "risk": risk,
                "effective_sample_size": shares.sum().square()
                / shares.square().sum()
                / len(shares),
                "largest_weight": shares.amax() / shares.sum(),
            }
        surrogate = (weights * own).mean()
        loss = surrogate - surrogate.detach() + risk.to(own.dtype)
        if self.weighed == "recon" and losses.penalties is not None:
            loss = loss + losses.penalties.mean()
        return loss, logged

    def _groups(self, own: Tensor, losses: Losses, memory: Memory) -> Groups:
        """Return the groups of the global batch; without waiting for the device."""
        values, keys = own.double(), self._keys(own, losses, memory)
        gathered = all_gather(torch.stack([values, keys.double()], 1))
        values, keys = gathered[:, 0], gathered[:, 1].long()
        every = torch.arange(len(values), device=values.device)
        place = every if self.level == "token" else _places(keys)
        zeros = torch.zeros_like(values)
        num_tokens = zeros.index_add(0, place, torch.ones_like(values))
        means = zeros.index_add(0, place, values) / num_tokens.clamp_min(1)
        group_keys = torch.zeros_like(keys).scatter_(0, place, keys)
        masses = num_tokens
        if self.balance > 0:
            kinds = _places(keys)
            counts = zeros.index_add(0, kinds, torch.ones_like(values))
            masses = zeros.index_add(0, place, counts[kinds] ** -self.balance)
        return Groups(place, num_tokens, means, masses / masses.sum(), group_keys)

    def _keys(self, own: Tensor, losses: Losses, memory: Memory) -> Tensor:
        if self.level == "token" and self.balance == 0:
            return torch.zeros_like(own, dtype=torch.int64)
        assert losses.tokens is not None
        if self.level == "document":
            return losses.tokens.document_ids.long().to(own.device)
        types = losses.tokens.token_ids.long().to(own.device)
        return memory.band[types] if self.level == "frequency_band" else types


def _places(keys: Tensor) -> Tensor:
    """Return numbers (n,) that are equal where keys (n,) are: 0 for the smallest key, and so on."""
    ordered, order = keys.sort(stable=True)
    is_new = torch.zeros_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, is_new.cumsum(0))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value of objective.<name> that is none of the choices.

    Raises:
        ValueError: names them.
    """
    if value not in choices:
        raise ValueError(
            f"objective.{name} must be one of {', '.join(choices)}, got {value!r}; "
            f"set objective.{name}={choices[0]}"
        )


def check_share(name: str, value: float, example: float, *, above: bool = False) -> None:
    """Refuse a value of objective.<name> outside of [0, 1], or of (0, 1] if it must lie above 0.

    Raises:
        ValueError: names the bounds.
    """
    if not (0 < value <= 1 if above else 0 <= value <= 1):
        raise ValueError(
            f"objective.{name} must lie in {'(' if above else '['}0, 1], got {value}; "
            f"set objective.{name}={example}"
        )
