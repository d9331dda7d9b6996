"""One SAE as plain data: what every format reads into and writes from.

    W_enc (d_in, d_sae)   W_dec (d_sae, d_in)   b_enc (d_sae)   b_dec (d_in)
    gated       b_enc is the gate's bias; r_mag, b_mag (d_sae)
    jumprelu    threshold (d_sae)
    batchtopk, matryoshka    threshold ()

Modules keep the encoder latent-major as `W_enc_T`; here and on disk it is `W_enc`, also in modules
inside modules ("generalist.W_enc"). `_on_disk` and `build` are the one place that converts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.gated import GatedSAE
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.matryoshka import MatryoshkaSAE
from ssae.sae.relu import ReLUSAE
from ssae.sae.residual import ResidualSAE
from ssae.sae.topk import TopKSAE

ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    sae.architecture: sae
    for sae in (
        TopKSAE,
        ReLUSAE,
        GatedSAE,
        JumpReLUSAE,
        BatchTopKSAE,
        MatryoshkaSAE,
        ResidualSAE,
    )
}

# What to train on with where neither a file nor `sae=` says.
TRAINING_DEFAULTS: dict[str, dict[str, Any]] = {
    "relu": {"l1_coefficient": 3.7},
    "gated": {"l1_coefficient": 6.7},
    "jumprelu": {
        "bandwidth": 1.0,
        "l0_coefficient": 1.0,
        "target_l0": None,
        "initial_threshold": 2.0,
        "threshold_lr": None,  # as that of the weights: it has been learnt already
    },
}


class Content(NamedTuple):
    """An SAE without its class."""

    architecture: str
    hyperparameters: dict[str, Any]
    """The constructor's arguments."""
    weights: dict[str, Tensor]
    metadata: dict[str, Any]
    """hookpoint, language_model and whatever else is known; never needed to compute."""


def weights_of(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Return the weights of a module under their names on disk, on the CPU."""
    state = sae.state_dict().items()
    return {_on_disk(name): _turned(name, t.detach().cpu()).contiguous() for name, t in state}


def shapes_of(sae: SparseAutoencoder) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `weights_of` gives, without touching the weights."""
    return {_on_disk(name): tuple(_turned(name, t).shape) for name, t in sae.state_dict().items()}


def skeleton(architecture: Any, hyperparameters: Any, *, where: Any) -> SparseAutoencoder:
    """Return the SAE without weights (on the meta device): no memory, no random numbers.

    Raises:
        ValueError: there is no such architecture, or the arguments do not fit it.
    """
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{where} names architecture {str(architecture)[:60]!r}; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    try:
        parts: dict[str, Any] = {  # an argument may be an SAE itself (residual.py)
            name: skeleton(**value, where=where) if isinstance(value, dict) else value
            for name, value in hyperparameters.items()
        }
        with torch.device("meta"):
            return ARCHITECTURES[architecture](**parts)
    except Exception as error:  # the arguments come from a file: any type, any value
        raise ValueError(f"{where} does not describe an SAE: {error}") from error


def build(content: Content, where: Any) -> SparseAutoencoder:
    """Return the SAE, on the CPU, in eval mode."""
    sae = skeleton(content.architecture, content.hyperparameters, where=where)
    found = {name: tuple(tensor.shape) for name, tensor in content.weights.items()}
    if shapes_of(sae) != found:
        raise ValueError(f"{where}: {content.architecture} has {shapes_of(sae)}, found {found}")
    state = {name: _turned(name, content.weights[_on_disk(name)]) for name in sae.state_dict()}
    sae.to_empty(device="cpu").load_state_dict(state)
    return sae.eval()


def with_training_defaults(architecture: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters that are complete: files of others say little about training."""
    auxk = {"auxk_coefficient": 1 / 32, "k_aux": max(1, known["d_in"] // 2)}  # arXiv 2406.04093
    return auxk | TRAINING_DEFAULTS.get(architecture, {}) | dict(known)


def with_subtraction(content: Content, subtract_b_dec: bool) -> Content:
    """Return the same function with `subtract_b_dec` as asked, for formats that fix it.

        (x - b_dec) @ W_enc + b_enc = x @ W_enc + (b_enc - b_dec @ W_enc)

    In float64: the two terms of the new bias may be large and cancel.
    """
    if content.hyperparameters["subtract_b_dec"] == subtract_b_dec:
        return content
    b_dec = content.weights["b_dec"].double()
    chunks = content.weights["W_enc"].split(2**14, dim=1)  # float64 of a part at a time
    shift = torch.cat([b_dec @ chunk.double() for chunk in chunks])
    weights = _shift_biases(content.weights, shift if subtract_b_dec else -shift)
    hyperparameters = content.hyperparameters | {"subtract_b_dec": subtract_b_dec}
    return content._replace(weights=weights, hyperparameters=hyperparameters)


def with_affine_input(content: Content, mean: Tensor, into: Tensor, back: Tensor) -> Content:
    """Return the SAE of x, given the SAE of x' = (x - mean) @ into, where into @ back = 1.

        recon = recon' @ back + mean

    Scaling by s is mean = 0, into = s, back = 1/s. Latents stay as they are.
    """
    weights = content.weights
    W_enc = into.double() @ weights["W_enc"].double()
    moved = weights | {
        "W_enc": W_enc.float(),
        "W_dec": (weights["W_dec"].double() @ back.double()).float(),
        "b_dec": (weights["b_dec"].double() @ back.double() + mean.double()).float(),
    }
    if not content.hyperparameters["subtract_b_dec"]:  # else b_dec now takes the mean away
        moved = _shift_biases(moved, -mean.double() @ W_enc)
    return content._replace(weights=moved)


def with_unit_decoder(content: Content) -> Content:
    """Return the SAE of latents' = latents * ||W_dec_j||, whose decoder directions have norm 1.

    Every nonlinearity but the choice of a top k commutes with a positive factor per latent, so the
    reconstruction stays. A scalar threshold stays too: the caller knows its unit.
    """
    norms = content.weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    weights = content.weights | {"W_dec": content.weights["W_dec"] / norms[:, None]}
    for name in ("W_enc", "b_enc", "b_mag", "threshold"):
        if name in weights and weights[name].dim():
            weights[name] = weights[name] * norms
    return content._replace(weights=weights)


def per_latent_threshold(content: Content) -> Content:
    """Return batchtopk and matryoshka as they are once trained: a jumprelu of one threshold."""
    if content.architecture == "jumprelu":
        return content
    given = content.hyperparameters
    shared = {key: given[key] for key in ("d_in", "d_sae", "auxk_coefficient", "k_aux")}
    known = shared | {"subtract_b_dec": given["subtract_b_dec"]}
    threshold = content.weights["threshold"].expand(given["d_sae"]).clone()
    return content._replace(
        architecture="jumprelu",
        hyperparameters=with_training_defaults("jumprelu", known),
        weights=content.weights | {"threshold": threshold},
    )


def _on_disk(name: str) -> str:
    return name.removesuffix("_T") if name.endswith("W_enc_T") else name


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Return what a parameter is on disk, or the other way round."""
    return tensor.T if name.endswith("W_enc_T") else tensor


def _shift_biases(weights: Mapping[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """Add `shift` (float64) to what is added to x @ W_enc, and its like to the magnitude path."""
    shifted = dict(weights) | {"b_enc": (weights["b_enc"].double() + shift).float()}
    if "r_mag" in weights:
        scaled = shift * weights["r_mag"].double().exp()
        shifted["b_mag"] = (weights["b_mag"].double() + scaled).float()
    return shifted
