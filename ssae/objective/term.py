"""Tilted empirical risk minimisation (arXiv 2007.01162, sections 2 and 5).

    R(tilt) = (1/tilt) [ logsumexp_i(tilt losses_i) - log n ]
    R(0) = mean,  R(+inf) = max,  R(-inf) = min
    grad R = sum_i w_i grad losses_i,   w = softmax(tilt losses)

R(tilt; c losses) = c R(c tilt; losses): a tilt has the unit 1/loss. The losses that reach an
objective are divided by the variance of the activations, so here a tilt is a pure number.
"""

import dataclasses
import math

import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.objective.base import Losses, Memory
from ssae.objective.groups import GroupObjective, Groups, check_choice, check_share

# Below this |tilt| * range(losses), R is its Taylor expansion: the logarithm would cancel.
SMALL = 1e-4

# No tilt is farther from 0: times a loss it has to be finite.
LARGEST = 1e100

UNITS = ("variance", "raw")
SCHEDULES = ("constant", "linear", "cosine")


def tilted_mean(losses: Tensor, tilt: float) -> Tensor:
    """Return R(tilt) of losses (n,), differentiable; tilt 0, inf and -inf are the limits.

    Raises:
        ValueError: there is no loss, or the tilt is not a number.
    """
    _check(losses, tilt)
    losses = _at_least_float32(losses)
    if tilt == 0:
        return losses.mean()
    if math.isinf(tilt):
        return losses.amax() if tilt > 0 else losses.amin()
    spread = (losses.amax() - losses.amin()).detach()
    if abs(tilt) * float(spread) < SMALL:
        return losses.mean() + tilt / 2 * losses.var(correction=0)
    # In float64: float32 loses 1e-7 / |tilt|, two thousandths of a loss near 1 at tilt 1e-4.
    log_mean = torch.logsumexp(tilt * losses.double(), 0) - math.log(len(losses))
    return (log_mean / tilt).to(losses.dtype)


def tilt_weights(losses: Tensor, tilt: float) -> Tensor:
    """Return w (n,), w_i = exp(tilt losses_i) / sum_j exp(tilt losses_j), the gradient of R.

    An infinite tilt shares the weight among the largest (smallest) losses.

    Raises:
        ValueError: there is no loss, or the tilt is not a number.
    """
    _check(losses, tilt)
    losses = _at_least_float32(losses)
    if math.isinf(tilt):
        extreme = losses.amax() if tilt > 0 else losses.amin()
        return (losses == extreme).to(losses.dtype) / (losses == extreme).sum()
    return torch.softmax(tilt * losses.double(), 0).to(losses.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TERM(GroupObjective):
    """R = (1/tilt) log sum_g mass_g exp(tilt m_g), over groups of tokens (objective/groups.py).

        q_g = mass_g exp(tilt m_g - z),   z = log sum_g mass_g exp(tilt m_g)

    With groups of more than a token this is hierarchical TERM (section 5): the mean within a group,
    the tilt over groups. level=token, balance=0 is R(tilt) of the batch's tokens.

    A batch is a small sample of what tilts: with rho < 1 the normaliser is a running one,

        z <- log( (1 - rho) exp(z) + rho exp(z of the batch) ),   from the first batch's

    whose weights are unbiased at fixed parameters, and sum to 1 on average only. Their sum in a
    batch is logged as mean_weight: where losses fall faster than z forgets it vanishes, and the
    gradient with it, which is said, too.

    Args:
        tilt: within +-1e100; positive weighs large losses up, negative down, 0 is ERM; 1e9 is the
            maximum, -1e9 the minimum.
        unit: of the losses that the tilt multiplies: variance of the activations, which makes the
            tilt a pure number, or raw, squared activations, as in arXiv 2411.00743.
        schedule: constant; linear and cosine rise from 0 at the first step.
        rise_share: over this share of the run.
        rho: the batch's share in the normaliser; 1: the batch alone.

    Raises:
        ValueError: a setting is out of its bounds, or rho < 1 is to follow a tilt that rises.
    """

    tilt: float = dataclasses.field(metadata={"example": 5})
    unit: str = "variance"
    schedule: str = "constant"
    rise_share: float = 0.1
    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not abs(self.tilt) <= LARGEST:
            raise ValueError(
                f"objective.tilt must lie in [-{LARGEST:g}, {LARGEST:g}], got {self.tilt}; set "
                "objective.tilt=5, 1e9 for the largest loss or -1e9 for the smallest"
            )
        check_choice("unit", self.unit, UNITS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_share("rise_share", self.rise_share, 0.1, above=True)
        check_share("rho", self.rho, 1, above=True)
        if self.rho < 1 and self.schedule != "constant":
            raise ValueError(
                f"objective.rho={self.rho} needs objective.schedule=constant, got {self.schedule}: "
                "the normaliser of one tilt is none of another; set objective.rho=1"
            )

    def memory(self, rows: Rows | None) -> Memory:
        """Return what the groups need, and z () of a running normaliser."""
        memory = super().memory(rows)
        if self.rho < 1:
            memory.register_buffer("z", torch.tensor(math.nan, dtype=torch.float64))
        return memory

    def tilt_at(self, losses: Losses) -> float:
        """Return the tilt of losses in units of the variance, at this point of the run."""
        share = 1.0
        if self.schedule != "constant":
            share = min(1.0, losses.progress / self.rise_share)
        if self.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return share * self.tilt * (losses.variance if self.unit == "raw" else 1)

    def group_weights(
        self, groups: Groups, losses: Losses, memory: Memory
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return q, R and, of a tilt that rises, the tilt."""
        tilt = self.tilt_at(losses)
        exponents = torch.where(groups.masses > 0, tilt * groups.means, -math.inf)
        largest = exponents.amax()
        raw = groups.masses * torch.exp(exponents - largest)
        z = largest + torch.log(raw.sum())
        risk = z / tilt if tilt else z
        mean = (groups.masses * groups.means).sum()
        deviations = torch.where(groups.masses > 0, groups.means - mean, 0)
        nearly = mean + tilt / 2 * (groups.masses * deviations.square()).sum()
        risk = torch.where(abs(tilt) * deviations.abs().amax() < SMALL, nearly, risk)
        logged = {} if self.schedule == "constant" else {"tilt": risk.new_full((), tilt)}
        if self.rho == 1:
            return raw / raw.sum(), risk, logged
        running = torch.logaddexp(math.log1p(-self.rho) + memory.z, math.log(self.rho) + z)
        memory.z.copy_(torch.where(memory.z.isnan(), z, running))
        q = groups.masses * torch.exp(exponents - memory.z)
        return q, risk, {"mean_weight": q.sum()}


def _at_least_float32(losses: Tensor) -> Tensor:
    return losses if losses.dtype in (torch.float32, torch.float64) else losses.float()


def _check(losses: Tensor, tilt: float) -> None:
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses must be a non-empty vector, got shape {tuple(losses.shape)}")
    if math.isnan(tilt):
        raise ValueError("tilt must be a number, got nan")
