"""JumpReLU SAE (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope, 2408.05147)."""

from typing import Any

import torch
from torch import Tensor, nn

from ssae.process.fsdp import own_rows, set_rows
from ssae.process.ranks import all_reduce, world_size
from ssae.sae import screen
from ssae.sae.base import Choice, SAEOutput, SparseAutoencoder
from ssae.sae.checks import check_not_negative, check_positive
from ssae.sae.sparse import ActiveSet


class JumpReLUSAE(SparseAutoencoder):
    """latents = relu(pre_acts) 1[pre_acts > threshold], one learnt threshold per latent.

    With l0_i the active latents of token i and L0 their mean over the global batch,

        penalty_i = l0_coefficient l0_i                                  (target_l0 null)
        mean_i penalty_i = l0_coefficient d_in (L0 / target_l0 - 1)^2    (target_l0 a number)

    Both steps have zero gradient almost everywhere. In training the straight-through estimates of
    2407.14435, eqs. 11 and 12, stand in its place, K = 1[|pre_acts - threshold| < bandwidth / 2]:

        d latents / d threshold = -(threshold / bandwidth) K
        d l0      / d threshold = -(1 / bandwidth) K

    The threshold is kept as it is, not as a logarithm, in float32 and with a learning rate of its
    own: Adam moves a logarithm by lr per step whatever its gradient, bfloat16 not at all.

    Args:
        d_in: width of x.
        d_sae: number of latents.
        l0_coefficient: weight of the penalty.
        target_l0: the wanted mean number of active latents per token, or None.
        bandwidth: width of K; for activations of mean norm sqrt(d_in), as in training.
        initial_threshold: likewise.
        threshold_lr: learning rate of the threshold at its peak; null for that of the weights.
        common: auxk_coefficient, k_aux, subtract_b_dec of SparseAutoencoder.
    """

    architecture = "jumprelu"
    scaling = ("b_enc", "threshold")

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l0_coefficient: float,
        target_l0: float | None,
        bandwidth: float,
        initial_threshold: float,
        threshold_lr: float | None,
        **common: Any,
    ) -> None:
        super().__init__(d_in, d_sae, **common)
        check_not_negative("l0_coefficient", l0_coefficient, 1)
        check_not_negative("initial_threshold", initial_threshold, 1)
        check_positive("bandwidth", bandwidth, 0.1)
        if target_l0 is not None:
            check_positive("target_l0", target_l0, 32)
        if threshold_lr is not None:
            check_positive("threshold_lr", threshold_lr, 1e-3)
        self.l0_coefficient, self.target_l0, self.bandwidth = l0_coefficient, target_l0, bandwidth
        self.initial_threshold, self.threshold_lr = initial_threshold, threshold_lr
        self.threshold = nn.Parameter(torch.full((d_sae,), float(initial_threshold)))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("l0_coefficient", "target_l0", "bandwidth", "initial_threshold", "threshold_lr")
        return super().hyperparameters | {name: getattr(self, name) for name in names}

    def _apply(self, fn: Any, recurse: bool = True) -> "JumpReLUSAE":
        """Leave the threshold in float32 where `.bfloat16()` and its like narrow all else."""
        threshold = self.threshold.data
        super()._apply(fn, recurse)
        if self.threshold.dtype.itemsize < 4:
            self.threshold.data = threshold.to(self.threshold.device, torch.float32)
        return self

    def values(self, pre_acts: Tensor, active: ActiveSet) -> Tensor:
        """relu(pre_acts) where above the threshold."""
        return _Jump.apply(pre_acts, self._thresholds(active), self.bandwidth)  # pyright: ignore[reportReturnType]

    def choose(self, x: Tensor) -> Choice | None:
        """Return where pre_acts exceed the threshold, or in training come within its reach."""
        reach = self.bandwidth / 2 if self.training else 0.0
        limit = self.threshold - reach
        return screen.above(x, self.W_enc_T, self.b_enc, limit, self.screen_dtype)

    def _thresholds(self, active: ActiveSet) -> Tensor:
        """Return the threshold of every entry; outside of training without estimates."""
        thresholds = active.take(self.threshold)
        return thresholds if self.training else thresholds.detach()

    def penalty(self, out: SAEOutput) -> Tensor:
        """Return the penalty of each token, shape (n,)."""
        active = out.latents.active
        steps: Tensor = _Step.apply(out.pre_acts, self._thresholds(active), self.bandwidth)  # pyright: ignore[reportAssignmentType]
        l0 = active.sum_per_token(steps)
        if self.target_l0 is None:
            return self.l0_coefficient * l0
        mean = all_reduce(l0.detach().mean()) / world_size()
        excess = mean / self.target_l0 - 1
        # Linear in each token's l0, with the value and the slope of the square at the mean.
        slope = 2 * excess / self.target_l0 * (l0 - l0.detach())
        return self.l0_coefficient * self.d_in * (excess.square() + slope)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the weights, and the threshold with its own learning rate."""
        weights = [p for p in self.parameters() if p is not self.threshold]
        own = lr if self.threshold_lr is None else self.threshold_lr
        return [{"params": weights, "lr": lr}, {"params": [self.threshold], "lr": own}]

    @torch.no_grad()
    def reset_latents(self, latents: Tensor, *how: Any) -> None:
        """Start latents anew, at the initial threshold."""
        super().reset_latents(latents, *how)
        *_, unit = how
        set_rows(self.threshold, latents, self.initial_threshold * unit)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder direction to norm 1, and keep the thresholds at 0 or above."""
        super().normalise_decoder()
        own_rows(self.threshold).clamp_min_(0)


class _Jump(torch.autograd.Function):
    """relu(pre_acts) 1[pre_acts > threshold], elementwise."""

    @staticmethod
    def forward(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        return pre_acts.relu() * (pre_acts > threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pre_acts, threshold, ctx.bandwidth = inputs
        ctx.save_for_backward(pre_acts, threshold)
        ctx.save_for_forward(pre_acts, threshold)

    @staticmethod
    def slopes(ctx: Any) -> tuple[Tensor, Tensor]:
        pre_acts, threshold = ctx.saved_tensors
        near = _near(pre_acts, threshold, ctx.bandwidth)
        on = ((pre_acts > threshold) & (pre_acts > 0)).to(pre_acts.dtype)
        return on, -threshold / ctx.bandwidth * near

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        by_pre_act, by_threshold = _Jump.slopes(ctx)
        return grads[0] * by_pre_act, grads[0] * by_threshold, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        by_pre_act, by_threshold = _Jump.slopes(ctx)
        d_pre, d_threshold, _ = tangents
        first = 0 if d_pre is None else by_pre_act * d_pre
        second = 0 if d_threshold is None else by_threshold * d_threshold
        return (first + second).to(by_pre_act.dtype)  # pyright: ignore[reportAttributeAccessIssue]


class _Step(torch.autograd.Function):
    """1[pre_acts > threshold], elementwise."""

    @staticmethod
    def forward(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        return ((pre_acts > threshold) & (pre_acts > 0)).to(threshold.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pre_acts, threshold, bandwidth = inputs
        slope = -_near(pre_acts, threshold, bandwidth) / bandwidth
        ctx.save_for_backward(slope)
        ctx.save_for_forward(slope)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, grads[0] * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        slope = ctx.saved_tensors[0]
        return torch.zeros_like(slope) if tangents[1] is None else slope * tangents[1]


def _near(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((pre_acts - threshold).abs() < bandwidth / 2).to(threshold.dtype)
