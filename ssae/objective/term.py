"""Tilted empirical risk minimisation (arXiv 2007.01162, section 2).

    R(tilt) = (1/tilt) [ logsumexp_i(tilt losses_i) - log n ]
    R(0) = mean,  R(+inf) = max,  R(-inf) = min
    grad R = sum_i w_i grad losses_i,   w = softmax(tilt losses)

R(tilt; c losses) = c R(c tilt; losses): a tilt has the unit 1/loss. The losses that reach an
objective are divided by the variance of the activations, so here a tilt is a pure number.
"""

import dataclasses
import math

import torch
import torch.distributed as dist
from torch import Tensor

from ssae.objective.base import Objective
from ssae.process.ranks import all_reduce

# Below this |tilt| * range(losses), R is its Taylor expansion: the logarithm would cancel.
SMALL = 1e-4


def tilted_mean(losses: Tensor, tilt: float) -> Tensor:
    """Return R(tilt) of losses (n,), differentiable; tilt 0, inf and -inf are the limits.

    Raises:
        ValueError: there is no loss, or the tilt is not a number.
    """
    _check(losses, tilt)
    losses = losses.float() if losses.dtype in (torch.bfloat16, torch.float16) else losses
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
    """Return w (n,), w_i = exp(tilt losses_i) / sum_j exp(tilt losses_j): the gradient of R.

    An infinite tilt shares the weight among the largest (smallest) losses.

    Raises:
        ValueError: there is no loss, or the tilt is not a number.
    """
    _check(losses, tilt)
    if math.isinf(tilt):
        extreme = losses.amax() if tilt > 0 else losses.amin()
        return (losses == extreme).to(losses.dtype) / (losses == extreme).sum()
    return torch.softmax(tilt * losses, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TERM(Objective):
    """R(tilt) over the tokens of the global batch.

    The normaliser z = log mean_i exp(tilt losses_i) is reduced over ranks in log space, and each
    rank back-propagates mean_i(w_i losses_i) with w_i = exp(tilt losses_i - z) held fixed: averaged
    over ranks that is grad R. (Averaging the gradients of local log-sum-exps is not.)

    Args:
        tilt: finite; positive weighs large losses up, negative down, 0 is ERM. 1e9 is the maximum.
    """

    tilt: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.tilt):
            raise ValueError(
                f"tilt must be finite, got {self.tilt}; set objective.tilt=1e9 for the maximum"
            )

    def __call__(self, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss whose gradient is grad R and whose value is R; log ESS and largest weight.

        effective_sample_size = (sum w)^2 / sum w^2 / n, in (0, 1].
        """
        exponents = self.tilt * losses.detach().double()
        largest = all_reduce(exponents.amax(), dist.ReduceOp.MAX)
        raw = torch.exp(exponents - largest)
        moments = torch.stack([raw.sum(), raw.square().sum(), raw.new_tensor(len(raw))])
        total, squares, count = all_reduce(moments).unbind()
        weights = (raw * count / total).to(losses.dtype)  # mean 1 over the global batch
        surrogate = (weights * losses).mean()
        if self.tilt == 0:
            value = all_reduce(losses.detach().double().sum()) / count
        else:  # in float64, so that small tilts do not cancel
            value = (largest + torch.log(total / count)) / self.tilt
        loss = surrogate - surrogate.detach() + value.to(losses.dtype)
        logged = {
            "effective_sample_size": total.square() / squares / count,
            "largest_weight": 1 / total,  # the largest of all ranks has raw = 1
        }
        return loss, logged


def _check(losses: Tensor, tilt: float) -> None:
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses must be a non-empty vector, got shape {tuple(losses.shape)}")
    if math.isnan(tilt):
        raise ValueError("tilt must be a number, got nan")
