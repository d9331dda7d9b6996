"""Read and write sparsify (eai-sparsify): `cfg.json`, `sae.safetensors`, a folder per hookpoint.

    cfg.json    d_in, k, num_latents (0: d_in * expansion_factor), activation "topk",
                transcode, skip_connection, multi_topk false; normalize_decoder says how it was
                trained
    tensors     encoder.weight (d_sae, d_in)     our W_enc, transposed
                encoder.bias (d_sae)             b_enc
                W_dec (d_sae, d_in)              W_dec, as it is
                b_dec (d_in)                     b_dec, always subtracted from x

Other options change what it computes and are refused by name.
"""

import json
import re
from pathlib import Path

from ssae.artifact.tensors import write_tensors
from ssae.sae.formats.content import Content, with_subtraction, with_training_defaults
from ssae.sae.formats.untrusted import open_safetensors, read_json, whole

CFG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = (WEIGHTS, CFG)
NEEDS = f"{CFG} (with d_in and k) and {WEIGHTS}; give the folder of one hookpoint"
HOLDS = ("topk",)
REFUSED = {
    "skip_connection": "a linear path around the latents",
    "transcode": "it predicts another activation than it reads",
    "signed": "negative latents",
    "multi_topk": "its forward decodes the 4 k largest, its encode gives k",
}


def holds(folder: Path) -> bool:
    """Whether `cfg.json` gives d_in and k but not d_sae, which is SAELens' word."""
    if not (folder / CFG).is_file():
        return False
    cfg = read_json(folder / CFG)
    return {"d_in", "k"} <= cfg.keys() and "d_sae" not in cfg


def read(folder: Path) -> Content:
    """Return the SAE in `folder`."""
    path = folder / CFG
    cfg = read_json(path)
    for option, meaning in REFUSED.items():
        if cfg.get(option):
            raise ValueError(
                f"{path}: {option} has no counterpart here ({meaning}); train without it"
                + (", or set it to false to have the k largest" if option == "multi_topk" else "")
            )
    if cfg.get("activation", "topk") != "topk":
        raise ValueError(
            f"{path}: activation must be topk, it is {str(cfg['activation'])[:40]!r}, which has no "
            "counterpart here"
        )
    d_in, k = whole(cfg, "d_in", path), whole(cfg, "k", path)
    if cfg.get("num_latents"):
        d_sae = whole(cfg, "num_latents", path)
    else:
        d_sae = d_in * whole(cfg, "expansion_factor", path)
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,)}
    shapes |= {"W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    found = open_safetensors(folder / WEIGHTS).take(shapes, CFG)
    weights = {
        "W_enc": found["encoder.weight"].T.contiguous(),
        "W_dec": found["W_dec"],
        "b_enc": found["encoder.bias"],
        "b_dec": found["b_dec"],
    }
    known = {"d_in": d_in, "d_sae": d_sae, "k": k, "subtract_b_dec": True}
    metadata = cfg.get("ssae")
    if not isinstance(metadata, dict):
        # The folder is named after the hookpoint: layers.10, h.3.mlp.
        named = re.fullmatch(r"\w+\.\d+(\.\w+)*", folder.name)
        metadata = {"hookpoint": folder.name} if named else {}
    return Content("topk", with_training_defaults("topk", known), weights, metadata)


def write(content: Content, folder: Path) -> None:
    """Write the two files into `folder`; b_dec is folded so that it is subtracted."""
    content = with_subtraction(content, True)
    given, weights = content.hyperparameters, content.weights
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, given["d_sae"] // given["d_in"]),  # num_latents decides
        "normalize_decoder": True,
        "num_latents": given["d_sae"],
        "k": given["k"],
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": given["d_in"],
        "ssae": content.metadata,  # they drop keys they do not know
    }
    tensors = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    text = json.dumps(cfg, indent=1)
    write_tensors(tensors, folder / WEIGHTS)
    (folder / CFG).write_text(text, encoding="utf-8")
