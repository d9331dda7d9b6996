"""Fit an SAE's encoder to its decoder: the encoder's own parameters learn by Adam.

The loss is that of training with a fixed decoder, halved as in P: 1/2 error_i + lam sum_j z_ij on
activations scaled to mean norm sqrt(d_in), where one learning rate serves every model. What prices
latents is said once for all: l1_coefficient becomes 2 lam for a ReLU SAE, target_l0 the l0 it had
for JumpReLU; a gate keeps its own price. BatchTopK and Matryoshka choose over the batch, as in
training.

l0 must stay what it was where nothing but it limits an SAE: more active latents lower any error.
So in the end the thresholds (the gate's bias) are moved by one number, at which as many latents
are active on these tokens as before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ssae.activation.order import mixed, shuffled
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.relu import ReLUSAE

WARMUP_SHARE, DECAY_SHARE = 0.1, 0.5
"""Of the steps: the learning rate rises and falls linearly over them."""
COUNTED_TOKENS = 16_384
"""On which l0 is held: thousands of active latents decide one number."""
CHUNK_BYTES = 2**25


def refit_encoder(
    sae: SparseAutoencoder,
    x: Tensor,
    lam: float,
    l0: float,
    *,
    num_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Fit the encoder in place; W_dec and b_dec stay.

    Args:
        sae: in the unit of x; in eval mode afterwards.
        x: (n, d_in) activations, float32.
        lam: price of a unit of z; 0 for all but ReLU SAEs.
        l0: active latents per token, where they are not priced.
        num_steps: of Adam.
        batch_size: tokens of a step; epochs are shuffled anew.
        lr: at its peak, for activations of mean norm sqrt(d_in).
        seed: of the order of tokens.
        progress: is told the share of steps done.
    """
    scale = sae.d_in**0.5 / float(x.norm(dim=1).mean())
    variance = scale**2 * float((x - x.mean(0)).square().sum(1).mean())
    own = dict(vars(sae))
    if isinstance(sae, ReLUSAE) and not isinstance(sae, GatedSAE):
        sae.l1_coefficient = 2 * lam * scale
    if isinstance(sae, JumpReLUSAE):
        sae.target_l0 = max(l0, 1e-6)
    sae.rescale_input(scale)
    sae.train()
    fixed = {id(sae.W_dec), id(sae.b_dec)}
    groups = [
        group | {"params": [p for p in group["params"] if id(p) not in fixed]}
        for group in sae.parameter_groups(lr)
    ]
    optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, num_steps))
    for parameter in (sae.W_dec, sae.b_dec):
        parameter.requires_grad_(False)
    order, epoch = torch.empty(0, dtype=torch.int64), 0
    for step in range(num_steps):
        while len(order) < batch_size:
            order, epoch = torch.cat([order, shuffled(len(x), mixed(seed, epoch))]), epoch + 1
        batch, order = scale * x[order[:batch_size]], order[batch_size:]
        out = sae(batch)
        penalty = sae.penalty(out)
        losses = sae.errors(batch, out) + (0 if penalty is None else penalty)
        optimizer.zero_grad()
        (losses.mean() / 2 / variance).backward()
        optimizer.step()
        schedule.step()
        sae.update_statistics(out)
        if isinstance(sae, JumpReLUSAE):
            sae.threshold.data.clamp_min_(0)
        progress((step + 1) / num_steps)
    sae.zero_grad()
    for parameter in (sae.W_dec, sae.b_dec):
        parameter.requires_grad_(True)
    sae.rescale_input(1 / scale)
    for name in ("l1_coefficient", "target_l0"):
        if name in own:
            setattr(sae, name, own[name])
    sae.eval()


@torch.no_grad()
def hold_l0(sae: SparseAutoencoder, x: Tensor, l0: float) -> None:
    """Move thresholds, or the bias of a gate, so that l0 latents are active per token of x.

    TopK holds its l0 by itself, a price on z decides that of a ReLU SAE: nothing to move there.

    Args:
        sae: in eval mode.
        x: (n, d_in); the first COUNTED_TOKENS are counted on.
        l0: that it is to have.
    """
    if not isinstance(sae, BatchTopKSAE | JumpReLUSAE | GatedSAE):
        return
    x = x[:COUNTED_TOKENS]
    num = round(l0 * len(x))
    pieces = x.split(max(1, CHUNK_BYTES // (4 * sae.d_sae)))
    largest = []
    for piece in pieces:
        excess = _excess(sae, piece).flatten()
        some = min(len(excess), 2 * (round(l0 * len(piece)) + 8))  # pieces differ by less
        largest.append(excess.topk(some, sorted=False).values)
    ordered = torch.cat(largest).sort(descending=True).values
    ordered = ordered[ordered.isfinite()]
    if num >= len(ordered):
        return
    shift = ordered[num]  # what exceeds it are the num largest
    if isinstance(sae, GatedSAE):
        sae.b_enc.sub_(shift)
    else:
        sae.threshold.copy_((sae.threshold + shift).clamp_min(0))


def _excess(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Return by how much latents (n, d_sae) exceed what makes them active; -inf: they cannot be."""
    pre_acts = sae.pre_acts(x)
    if isinstance(sae, GatedSAE):
        able = sae.r_mag.exp() * (pre_acts - sae.b_enc) + sae.b_mag > 0
        return torch.where(able, pre_acts, -torch.inf)
    assert isinstance(sae, BatchTopKSAE | JumpReLUSAE)
    return torch.where(pre_acts > 0, pre_acts - sae.threshold, -torch.inf)


def _factor(step: int, num_steps: int) -> float:
    rise = (step + 1) / max(1.0, WARMUP_SHARE * num_steps)
    return max(0.0, min(1.0, rise, (num_steps - step) / max(1.0, DECAY_SHARE * num_steps)))
