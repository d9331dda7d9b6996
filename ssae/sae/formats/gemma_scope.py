"""Gemma Scope (arXiv 2408.05147): one `params.npz`, a JumpReLU SAE.

    W_enc (d_in, d_sae)   W_dec (d_sae, d_in)   b_enc (d_sae)   b_dec (d_in)   threshold (d_sae)

    pre = x @ W_enc + b_enc
    latents = relu(pre) 1[pre > threshold]
    recon = latents @ W_dec + b_dec

b_dec is not subtracted from x and there is no flag for it: an SAE that does subtract it is written
with b_enc - b_dec @ W_enc. There is no room for metadata either; ours go into the comment of the
zip file, which other readers skip.
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from ssae.sae.formats.content import (
    Content,
    per_latent_threshold,
    with_subtraction,
    with_training_defaults,
)
from ssae.sae.formats.zipped import npz_comment, open_npz

PARAMS = "params.npz"
FILES = (PARAMS,)
NEEDS = PARAMS
HOLDS = ("jumprelu", "batchtopk", "matryoshka")
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
LARGEST_COMMENT = 2**16 - 1
"""Bytes, by the zip format."""


def holds(folder: Path) -> bool:
    """Whether the folder has a `params.npz`."""
    return (folder / PARAMS).is_file()


def read(folder: Path) -> Content:
    """Return the SAE in `folder`."""
    path = folder / PARAMS
    file = open_npz(path)
    shape = file.shapes.get("W_enc", ())
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"{path} must hold W_enc (d_in, d_sae), it has {list(file.shapes)[:8]}")
    d_in, d_sae = shape
    vectors = {"b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in)} | vectors
    weights = file.take(shapes, "W_enc")
    # Below 0 the relu alone decides, as at 0, which is where training can go on from.
    weights["threshold"] = weights["threshold"].clamp(min=0)
    known = {"d_in": d_in, "d_sae": d_sae, "subtract_b_dec": False}
    hyperparameters = with_training_defaults("jumprelu", known)
    return Content("jumprelu", hyperparameters, weights, npz_comment(path))


def write(content: Content, folder: Path) -> None:
    """Write `params.npz` into `folder`."""
    weights = with_subtraction(per_latent_threshold(content), False).weights
    comment = json.dumps(content.metadata).encode()
    np.savez(folder / PARAMS, **{name: weights[name].numpy() for name in NAMES})  # pyright: ignore
    if len(comment) <= LARGEST_COMMENT:
        with zipfile.ZipFile(folder / PARAMS, "a") as archive:
            archive.comment = comment
