"""What is said when a run meets a number that is not finite."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssae.activation.capture import NonFinite
from ssae.process.fsdp import own_rows
from ssae.process.ranks import all_reduce


def of_batch(
    x: Tensor, losses: Tensor, step: int, lr: float, where: Callable[[int], str]
) -> NonFinite:
    """Return the error for a batch whose loss is not finite, of this rank or of another.

    Args:
        x: (n, d_in) what the SAE was given.
        losses: (n,) of its tokens.
        step: of the run, from 0.
        lr: that a smaller one may help.
        where: says of a row which token it is.
    """
    broken = (~torch.isfinite(x).all(1)).nonzero()[:, 0].tolist()
    if broken:
        return NonFinite(
            f"step {step}: the activations of {where(broken[0])} are not finite; if "
            "language_model.dtype is float16, set language_model.dtype=bfloat16"
        )
    broken = (~torch.isfinite(losses)).nonzero()[:, 0].tolist()
    found = "is not finite"
    if broken:
        found = f"is {losses[broken[0]].item()}, that of {where(broken[0])}"
        if len(broken) > 1:
            found += f" and of {len(broken) - 1:,} others of {len(losses):,}"
    return NonFinite(f"step {step}: the loss {found}; {_remedy(lr)}")


@torch.no_grad()
def check_weights(sae: nn.Module, step: int, lr: float) -> None:
    """Refuse weights that are not finite; every rank must call.

    Raises:
        NonFinite: names the first.
    """
    weights = dict(sae.named_parameters())
    bad = torch.stack([~torch.isfinite(own_rows(w)).all() for w in weights.values()])
    bad = all_reduce(bad.int())  # a rank may have some of the rows only
    for name, is_bad in zip(weights, bad.tolist(), strict=True):
        if is_bad:
            raise NonFinite(f"{name} holds non-finite values at step {step}; {_remedy(lr)}")


def _remedy(lr: float) -> str:
    return (
        f"try a smaller lr (now {lr}; generalist.lr, specialist.lr) or objective.tilt, which make "
        "another run, from its first step"
    )
