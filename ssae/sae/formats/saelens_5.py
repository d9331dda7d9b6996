"""cfg.json of SAELens before version 6: flat, with training options, and other names.

    hook_point, activation_fn_str, activation_fn_kwargs {k}, normalize_activations (bool),
    finetuning_scaling_factor; the tensors are those of version 6

What tells them apart is metadata.sae_lens_version, which older files lack.
"""

import re
from pathlib import Path
from typing import Any


def as_version_6(cfg: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content of a cfg.json as version 6 writes it."""
    metadata = cfg.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
    major = re.match(r"(\d{1,4})\.", str(version))
    if major and int(major[1]) >= 6:
        return cfg | {"metadata": metadata}
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    arguments = cfg.get("activation_fn_kwargs")
    modern = {"architecture": "standard", "apply_b_dec_to_input": True} | cfg
    if activation == "topk":
        k = arguments.get("k") if isinstance(arguments, dict) else None
        modern |= {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
    elif activation != "relu" or cfg.get("finetuning_scaling_factor"):
        raise ValueError(
            f"{path}: activation {str(activation)[:40]!r}, finetuning_scaling_factor "
            f"{cfg.get('finetuning_scaling_factor')!r} (SAELens before 6) has no counterpart here; "
            "relu and topk without that factor have"
        )
    if isinstance(scaled := cfg.get("normalize_activations"), bool):
        modern["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    hook = cfg.get("hook_name", cfg.get("hook_point"))
    names = ("model_name", "hook_head_index", "context_size", "prepend_bos", "dataset_path")
    flat = {name: cfg[name] for name in names if name in cfg}
    return modern | {"metadata": flat | metadata | {"hook_name": hook}}
