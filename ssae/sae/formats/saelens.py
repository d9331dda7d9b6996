"""SAELens 6 and later: `cfg.json` beside `sae_weights.safetensors`.

    cfg.json     d_in, d_sae, architecture, apply_b_dec_to_input (our subtract_b_dec),
                 normalize_activations, reshape_activations, topk: k, rescale_acts_by_decoder_norm,
                 metadata {sae_lens_version, hook_name, model_name, ...}
    tensors      W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_dec (d_in), and per architecture
      standard, topk   b_enc                          ours: relu, topk
      jumprelu         b_enc, threshold (d_sae)       (up to 6.47, while training: log_threshold)
      gated            b_gate, b_mag, r_mag           b_gate is our b_enc
      batchtopk, matryoshka_batchtopk    b_enc, topk_threshold ()     training checkpoints only: it
                       saves both as jumprelu for use, and so do we

A training checkpoint may read scaled activations: `activation_scaler.json` {"scaling_factor"} and
`activation_whitening.safetensors` {mean, matrix, inverse_matrix} are folded into the weights. So is
the decoder norm that its top k multiplies latents by. Normalisation per token cannot be folded.
"""

import json
from pathlib import Path
from typing import Any

import torch

from ssae.artifact.tensors import write_tensors
from ssae.sae.formats.content import (
    Content,
    per_latent_threshold,
    with_affine_input,
    with_training_defaults,
    with_unit_decoder,
)
from ssae.sae.formats.saelens_5 import as_version_6
from ssae.sae.formats.untrusted import open_safetensors, read_json, whole

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
FILES = (WEIGHTS, CFG, SCALER, WHITENING)
NEEDS = f"{CFG} (with d_sae) and {WEIGHTS}"
HOLDS = ("relu", "topk", "gated", "jumprelu", "batchtopk", "matryoshka")

OURS = {
    "standard": "relu",
    "topk": "topk",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
}
VECTORS = {  # their names of what we have besides W_enc, W_dec, b_dec
    "gated": {"b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"},
    "jumprelu": {"b_enc": "b_enc", "threshold": "threshold"},
    "batchtopk": {"b_enc": "b_enc", "topk_threshold": "threshold"},
    "matryoshka": {"b_enc": "b_enc", "topk_threshold": "threshold"},
}


def holds(folder: Path) -> bool:
    """Whether `cfg.json` gives d_sae; sparsify's has num_latents instead."""
    return (folder / CFG).is_file() and "d_sae" in read_json(folder / CFG)


def read(folder: Path) -> Content:
    """Return the SAE in `folder`, reading unscaled activations, with every fold done."""
    path = folder / CFG
    cfg = as_version_6(read_json(path), path)
    theirs = cfg.get("architecture")
    if not isinstance(theirs, str) or theirs not in OURS:
        raise ValueError(
            f"{path}: architecture must be one of {', '.join(OURS)}, it is {str(theirs)[:40]!r}; "
            "transcoders and the others have no counterpart here"
        )
    architecture = OURS[theirs]
    d_in, d_sae = whole(cfg, "d_in", path), whole(cfg, "d_sae", path)
    known: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    known["subtract_b_dec"] = _flag(cfg, "apply_b_dec_to_input", True, path)
    if architecture in ("topk", "batchtopk", "matryoshka"):
        known["k"] = _k(cfg, path)
    if architecture == "matryoshka":
        known["group_sizes"] = _group_sizes(cfg, d_sae, path)
    content = Content(
        architecture,
        with_training_defaults(architecture, known),
        _weights(folder, architecture, d_in, d_sae),
        _metadata(cfg),
    )
    # Only top-k architectures have the flag; while training it is on unless said otherwise.
    by_norm = "k" in known and _flag(
        cfg, "rescale_acts_by_decoder_norm", theirs in ("batchtopk", "matryoshka_batchtopk"), path
    )
    return _unscaled(content, cfg, folder, by_norm)


def write(content: Content, folder: Path) -> None:
    """Write the two files into `folder`."""
    if content.architecture in ("batchtopk", "matryoshka"):
        content = per_latent_threshold(content)
    given, weights = content.hyperparameters, content.weights
    theirs = {ours: theirs for theirs, ours in OURS.items()}[content.architecture]
    known = content.metadata.get("saelens")
    known = dict(known) if isinstance(known, dict) else {}
    metadata = {
        # A module path of transformers, as our hookpoints are, not a TransformerLens hook.
        "model_class_name": "AutoModelForCausalLM",
        **known,
        "model_name": content.metadata.get("language_model"),
        "hook_name": content.metadata.get("hookpoint"),
        "sae_lens_version": "6.0.0",  # the version of the format: without it, it is read as older
        "sae_lens_training_version": None,
        "ssae": {key: value for key, value in content.metadata.items() if key != "saelens"},
    }
    cfg = {
        "d_in": given["d_in"],
        "d_sae": given["d_sae"],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": given["subtract_b_dec"],
        "normalize_activations": "none",
        "reshape_activations": metadata.pop("reshape_activations", "none"),
        "architecture": theirs,
        "metadata": metadata,
    }
    if theirs == "topk":
        cfg |= {"k": given["k"], "rescale_acts_by_decoder_norm": False}
    names = _names(content.architecture)
    text = json.dumps(cfg, indent=1)
    write_tensors({name: weights[ours] for name, ours in names.items()}, folder / WEIGHTS)
    (folder / CFG).write_text(text, encoding="utf-8")


def _names(architecture: str) -> dict[str, str]:
    """Return our name of each of their tensors."""
    matrices = {name: name for name in ("W_enc", "W_dec", "b_dec")}
    return matrices | VECTORS.get(architecture, {"b_enc": "b_enc"})


def _weights(folder: Path, architecture: str, d_in: int, d_sae: int) -> dict[str, torch.Tensor]:
    file = open_safetensors(folder / WEIGHTS)
    names = _names(architecture)
    if architecture == "jumprelu" and "log_threshold" in file.shapes:
        names["log_threshold"] = names.pop("threshold")
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {name: (d_sae,) for name in names if name not in shapes}
    if "topk_threshold" in names:
        shapes["topk_threshold"] = ()
    scaled = {"scaling_factor": (d_sae,)} if "scaling_factor" in file.shapes else {}
    found = file.take(shapes | scaled, CFG)
    if scaled and not (found.pop("scaling_factor") == 1).all():
        raise ValueError(
            f"{folder / WEIGHTS}: scaling_factor must be 1 everywhere, it is not; fold the "
            "fine-tuning scale into W_dec in SAELens and save again"
        )
    if "log_threshold" in names:
        found["log_threshold"] = found["log_threshold"].exp()
    weights = {ours: found[name] for name, ours in names.items()}
    if "threshold" in weights:
        # Below 0 the relu alone decides, as at 0, which is where training can go on from.
        weights["threshold"] = weights["threshold"].clamp(min=0)
    return weights


def _unscaled(content: Content, cfg: dict[str, Any], folder: Path, by_norm: bool) -> Content:
    """Fold in what SAELens does to activations before the encoder and to latents after it."""
    path, scaling = folder / CFG, cfg.get("normalize_activations", "none")
    d_in = content.hyperparameters["d_in"]
    if scaling not in (None, "none", "expected_average_only_in", "covariance_whitening"):
        raise ValueError(
            f"{path}: normalize_activations is {str(scaling)[:40]!r}; only none, "
            "expected_average_only_in and covariance_whitening can be folded into weights, a "
            "factor per token (constant_norm_rescale, layer_norm) cannot: train with one of these"
        )
    if scaling == "expected_average_only_in":
        _must_have(folder, SCALER, scaling)
        factor = read_json(folder / SCALER).get("scaling_factor")
        if not isinstance(factor, int | float) or not 1e-9 < factor < 1e9:
            raise ValueError(
                f"{folder / SCALER}: scaling_factor must be a positive number, it is "
                f"{str(factor)[:40]!r}"
            )
        one = torch.eye(d_in, dtype=torch.float64)
        content = with_affine_input(content, torch.zeros(d_in), one * factor, one / factor)
        if by_norm and "threshold" in content.weights:  # in units of latents * ||W_dec||
            content.weights["threshold"] = content.weights["threshold"] / factor
    if by_norm:
        # topk(pre * n) / n @ W_dec: with W_enc, b_enc times n and W_dec / n it is a plain top k.
        # A scalar threshold is in the unit of the product already.
        content = with_unit_decoder(content)
    if scaling == "covariance_whitening":
        _must_have(folder, WHITENING, scaling)
        square = {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}
        found = open_safetensors(folder / WHITENING).take(square, CFG)
        content = with_affine_input(content, *found.values())
    return content


def _must_have(folder: Path, name: str, scaling: str) -> None:
    if not (folder / name).is_file():
        raise ValueError(
            f"{folder / CFG}: normalize_activations is {scaling!r} and {name} is not there to fold "
            "in; save the SAE from SAELens after fold_activation_norm_scaling_factor, or give its "
            "training checkpoint"
        )


def _flag(cfg: dict[str, Any], key: str, default: bool, path: Path) -> bool:
    value = cfg.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {key} must be true or false, it is {str(value)[:40]!r}")
    return value


def _k(cfg: dict[str, Any], path: Path) -> int:
    k = cfg.get("k")
    if isinstance(k, float) and 0.5 <= k < 2**31:  # a mean over the batch there
        k = max(1, round(k))
    return whole({"k": k}, "k", path)


def _group_sizes(cfg: dict[str, Any], d_sae: int, path: Path) -> list[int]:
    """Return the sizes of groups; SAELens gives the widths at their ends."""
    widths = cfg.get("matryoshka_widths")
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise ValueError(f"{path}: matryoshka_widths must be a list of whole numbers")
    ends = [0, *widths, *([] if widths and widths[-1] == d_sae else [d_sae])]
    sizes = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    if min(sizes) < 1:
        raise ValueError(f"{path}: matryoshka_widths must rise up to d_sae={d_sae}")
    return sizes


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    known = dict(cfg["metadata"])
    ours = known.pop("ssae", None)
    if cfg.get("reshape_activations", "none") != "none":
        known["reshape_activations"] = cfg["reshape_activations"]  # hook_z: heads side by side
    found = {"hookpoint": known.get("hook_name"), "language_model": known.get("model_name")}
    return (ours if isinstance(ours, dict) else {}) | found | {"saelens": known}
