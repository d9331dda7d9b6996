"""The SAE that a training run starts from."""

import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.dead_latents.recycle import recycle
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import load
from ssae.sae.residual import ResidualSAE
from ssae.study import Study

log = logging.getLogger(__name__)

SANITY_TOKENS = 4096
MEDIAN_TOKENS = 2**15
"""Tokens, evenly spaced over the harvest, whose geometric median stands for that of all."""
SAME_NORM = 1e-3
"""Decoder norms this close to 1 are 1 but for rounding."""
STEERING = (
    "auxk_coefficient", "k_aux", "l1_coefficient", "l0_coefficient", "target_l0", "bandwidth",
    "threshold_lr",
)  # fmt: skip
"""Hyperparameters that steer training and do not enter what an SAE computes."""
EXTRA_SHARE = 4
"""Without `extra_sae`, a residual arm gets one extra latent for this many of `sae=`."""


class Start(NamedTuple):
    """What training starts from."""

    sae: SparseAutoencoder
    recycled: Tensor
    """(d_sae,) bool: latents that are not what they were in `init_from`."""


def initial_sae(study: Study, arm_name: str, init: Path | None, activations: Activations) -> Start:
    """Return a fresh SAE, or a checked old one: as it is, recycled, or frozen beside extra latents.

    Args:
        study: what to make, and how an arm starts.
        arm_name: the arm.
        init: folder of the SAE to start from; None for a fresh one.
        activations: what the arm learns from.

    Raises:
        ValueError: the old SAE does not belong to these activations.
    """
    if init is None:
        sae = _fresh(study.sae, activations)
        with torch.no_grad():
            sae.b_dec.copy_(initial_b_dec(study.training.initial_b_dec, activations))
        return Start(sae, torch.zeros(sae.d_sae, dtype=torch.bool))
    start = study.arms[arm_name].start
    sae = load(init).train()
    if start != "residual":
        sae = _steered(study, sae)
        _warn_of_ignored_settings(study, sae)
        _fold_decoder_norms(sae, init)
    check_fits(sae, init, activations)
    if start == "recycle":
        device = torch.device(study.language_model.device_used)
        rate = study.training.recycle_firing_rate
        return Start(sae, recycle(sae, activations, rate, device))
    if start == "residual":
        sae = with_extra_latents(study, sae, activations)
    return Start(sae, torch.zeros(sae.d_sae, dtype=torch.bool))


def with_extra_latents(
    study: Study, generalist: SparseAutoencoder, activations: Activations
) -> ResidualSAE:
    """Return the generalist, frozen, beside fresh latents that are to learn its residual.

    Their b_dec is 0, as a residual's mean nearly is; their b_enc makes them read x - mean.
    """
    extra = _fresh(extra_sae(study), activations)
    every, directions = torch.arange(extra.d_sae), extra.W_dec.detach().clone()
    offset = directions @ activations.mean.to(directions)
    extra.reset_latents(every, directions, 1.0, -offset, _unit(activations))
    log.info(
        "%d extra latents (%s) learn the residual of %d frozen ones",
        extra.d_sae, extra.architecture, generalist.d_sae,
    )  # fmt: skip
    return ResidualSAE(generalist, extra)


def extra_sae(study: Study) -> functools.partial[Any]:
    """Return what makes the extra latents of a residual arm."""
    return study.extra_sae or quarter(study.sae)


def quarter(sae: functools.partial[Any]) -> functools.partial[Any]:
    """Return `sae` with a quarter of its latents and of its active latents per token."""
    less = {}
    for name in ("d_sae", "k", "target_l0", "group_sizes"):
        value = sae.keywords.get(name)
        if isinstance(value, list | tuple):
            less[name] = [max(1, size // EXTRA_SHARE) for size in value]
        elif isinstance(value, int):
            less[name] = max(1, value // EXTRA_SHARE)
        elif value is not None:
            less[name] = value / EXTRA_SHARE
    if "group_sizes" in less:  # they must sum to d_sae, however they were rounded
        less["d_sae"] = sum(less["group_sizes"])
    # A partial of Hydra's partial would stay nested, and artifact.describe could not read it.
    return functools.partial(sae.func, **(sae.keywords | less))


def initial_b_dec(kind: str, activations: Activations) -> Tensor:
    """Return the first b_dec (d_in,): mean, geometric_median or zeros."""
    if kind == "zeros":
        return torch.zeros(activations.d_in)
    if kind == "mean":
        return activations.mean
    num = min(len(activations), MEDIAN_TOKENS)
    rows = torch.linspace(0, len(activations) - 1, num, dtype=torch.float64).long()
    return geometric_median(activations.rows(rows).activations)


def geometric_median(x: Tensor, tolerance: float = 1e-7, max_iterations: int = 1000) -> Tensor:
    """Return the point y (d_in,) that minimises sum_i ||x_i - y||, in float64.

    Weiszfeld's iteration y <- T(y) = sum_i (x_i / r_i) / sum_i (1 / r_i), r_i = ||x_i - y||, which
    is undefined where y meets data. There, as by Vardi and Zhang (doi 10.1073/pnas.97.4.1423),

        y <- (1 - a) T(y) + a y,    a = min(1, m / ||sum_i (x_i - y) / r_i||)

    with sums over the other points and m the number of points at y; at the median, a = 1.

    Args:
        x: (n, d_in).
        tolerance: of a step, in units of the mean distance to y.
        max_iterations: a bound that is not met in practice.
    """
    x = x.double()
    y = x.mean(0)
    for _ in range(max_iterations):
        distances = torch.linalg.vector_norm(x - y, dim=1)
        scale = distances.mean()
        apart = distances > 1e-12 * scale
        weights = torch.where(apart, 1 / distances.clamp_min(1e-300), 0)
        total = weights.sum()
        if total == 0:  # all points are one
            return y
        pull = weights @ x - total * y
        num_here = len(x) - apart.sum()
        stay = (num_here / torch.linalg.vector_norm(pull).clamp_min(1e-300)).clamp_max(1)
        step = (1 - stay) * pull / total
        y = y + step
        if torch.linalg.vector_norm(step) <= tolerance * scale:
            break
    # Steps get ever shorter near a median that is one of the points.
    distances = torch.linalg.vector_norm(x - y, dim=1)
    nearest = x[distances.argmin()]
    there = torch.linalg.vector_norm(x - nearest, dim=1)
    return nearest if there.sum() < distances.sum() else y


def _fresh(make: functools.partial[Any], activations: Activations) -> SparseAutoencoder:
    sae: SparseAutoencoder = make(d_in=activations.d_in)
    # Thresholds begin as meant for the scaled activations that training sees.
    sae.rescale_input(_unit(activations))
    return sae


def _unit(activations: Activations) -> float:
    """Return the mean norm of activations, where training has sqrt(d_in)."""
    return activations.mean_norm / activations.d_in**0.5


@torch.no_grad()
def _fold_decoder_norms(sae: SparseAutoencoder, init: Path) -> None:
    """Give decoder directions norm 1, as training keeps them: other libraries may not."""
    norms = sae.W_dec.norm(dim=1)
    if (norms - 1).abs().max() < SAME_NORM:
        return
    sae.fold_decoder_norms()
    log.info("decoder norms of %s moved into its latents: %.3g to %.3g", init, *norms.aminmax())
    if "k" in sae.hyperparameters and norms.max() > (1 + SAME_NORM) * norms.min():
        log.warning("they differ: the %d largest are chosen anew", sae.hyperparameters["k"])


def steering(study: Study) -> dict[str, Any]:
    """Return what `sae=` says of training on from another SAE of its architecture."""
    return {name: value for name, value in study.sae.keywords.items() if name in STEERING}


def _steered(study: Study, sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return the same SAE, trained on as `sae=` says where that is its architecture."""
    settings = {n: v for n, v in steering(study).items() if v != sae.hyperparameters.get(n)}
    if type(sae) is not study.sae.func or not settings:
        return sae
    steered = type(sae)(**(sae.hyperparameters | settings))
    steered.load_state_dict(sae.state_dict())
    return steered.train(sae.training)


def check_fits(sae: SparseAutoencoder, init: Path, activations: Activations) -> None:
    """Refuse an SAE, loaded from `init`, that was not made for these activations.

    Raises:
        ValueError: it reads another width, or reconstructs worse than their mean.
    """
    if sae.d_in != activations.d_in:
        raise ValueError(
            f"the SAE in {init} reads activations of width {sae.d_in}, hookpoint "
            f"{activations.artifact.manifest['hookpoint']} gives {activations.d_in}; "
            "set hookpoint=<the one it was trained on>"
        )
    x = activations.slice(0, SANITY_TOKENS).activations.float()
    training = sae.training
    with torch.no_grad():
        out = sae.eval()(x)
    sae.train(training)
    fvu = float((x - out.recon).square().sum() / (x - x.mean(0)).square().sum())
    l0 = float(out.latents.num_active().float().mean())
    log.info("%s: fvu %.3f, l0 %.1f on %d tokens", init, fvu, l0, len(x))
    if fvu > 1:
        raise ValueError(
            f"the SAE in {init} has fvu {fvu:.2f} on these activations (l0 {l0:.1f}): worse than "
            "their mean. Likely causes: another hookpoint (off by one?), another language model, "
            "bos policy, scaled inputs, or hardly any training. Check hookpoint=, "
            "language_model=, bos=, generalist.num_tokens="
        )


def _warn_of_ignored_settings(study: Study, sae: SparseAutoencoder) -> None:
    """Say so when the SAE that training starts from is not the one `sae=` describes."""
    found = {"_target_": type(sae).__name__, **sae.hyperparameters}
    asked = {"_target_": getattr(study.sae.func, "__name__", ""), **study.sae.keywords}
    ignored = [f"{k}={v} (it has {found.get(k)})" for k, v in asked.items() if found.get(k) != v]
    if ignored:
        log.warning("init_from decides the SAE; ignored: sae.%s", ", sae.".join(ignored))
