"""Specialised sparse autoencoders: find the rare concepts of a subdomain in a language model.

sae = ssae.load(folder or hub id)            ssae.save(sae, folder, format="saelens")
sae.encode(x) -> (n, d_sae)                  sae.decode(latents) -> (n, d_in)
ssae.tilted_mean(losses, tilt)               ssae.tilt_weights(losses, tilt)
lm = ssae.LanguageModel("EleutherAI/pythia-70m")
lm.capture(input_ids, hookpoint)             lm.splice(input_ids, hookpoint, fn) -> logits
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssae.language_model.frozen import LanguageModel
    from ssae.objective.term import tilt_weights, tilted_mean
    from ssae.sae.files import load, save

__version__ = "0.1.0"

__all__ = ["LanguageModel", "load", "save", "tilt_weights", "tilted_mean"]

_HOME = {
    "LanguageModel": "ssae.language_model.frozen",
    "load": "ssae.sae.files",
    "save": "ssae.sae.files",
    "tilt_weights": "ssae.objective.term",
    "tilted_mean": "ssae.objective.term",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `ssae --help` and the docstring workers do not need torch.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ssae' has no attribute {name!r}")
