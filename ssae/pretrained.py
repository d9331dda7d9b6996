"""What transformers loads and where it puts it: safetensors only, no code of a repository."""

import importlib.util
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
QUANTIZATIONS = ("8bit", "4bit")


def from_pretrained(auto_class: Any, name: str, revision: str | None, **options: Any) -> Any:
    """Return what an Auto class of transformers loads.

    Raises:
        ValueError: it is not there, not in safetensors, or needs a package or code of its own.
    """
    try:
        # Asked without an answer, transformers offers to run the repository's code.
        return auto_class.from_pretrained(
            name, revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        raise ValueError(
            f"cannot load language model {name!r}: {first_line} "
            "It must be a directory with safetensors weights or a Hugging Face repository"
            + (" in the local cache (HF_HUB_OFFLINE is set)" if offline else "")
            + "; set language_model.name=<directory or repository>"
        ) from error


def has_causal_head(config: Any) -> bool:
    """Whether the stored model predicts the next token."""
    heads = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    known = {name for head in heads for name in ([head] if isinstance(head, str) else head)}
    return any(
        name in known or name.endswith(("ForCausalLM", "LMHeadModel"))
        for name in config.architectures or ()
    )


def load(config: Any, name: str, revision: str | None, options: dict[str, Any]) -> Any:
    """Return a causal language model with its head, any other model (an encoder) without one.

    Raises:
        ValueError: beside what `from_pretrained` refuses: weights are missing.
    """
    causal = has_causal_head(config)
    # safetensors only: a .bin checkpoint is a pickle.
    model, loading = from_pretrained(
        AutoModelForCausalLM if causal else AutoModel, name, revision,
        use_safetensors=True, output_loading_info=True, **options,
    )  # fmt: skip
    # Whatever is not in the file starts at random. Of an encoder that may be what text never
    # reaches: the pooler, and the decoder behind it.
    unused = () if causal else ("pooler.", "decoder.")
    missing = [key for key in sorted(loading["missing_keys"]) if not key.startswith(unused)]
    if missing:
        raise ValueError(
            f"language model {name!r} lacks {len(missing)} weights that its config.json announces "
            f"(first: {missing[0]}); set language_model.name=<a complete model>"
        )
    return model


def placement(
    config: Any,
    dtype: str,
    device: str,
    device_map: str | dict[str, Any] | None,
    quantization: str | None,
) -> dict[str, Any]:
    """Return the options of `from_pretrained` that decide dtype, quantisation and devices.

    With "device_map" among them, the model comes back where it belongs and must not be moved.

    Raises:
        ValueError: a package or device is missing, or a quantised model is to be quantised again.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"language_model.device={device} needs a GPU that torch sees; set "
            "language_model.device=auto"
        )
    stored = getattr(config, "quantization_config", None)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, dtype)}
    if quantization is not None:
        if stored is not None:
            raise ValueError(
                f"the stored model is quantised already, got language_model.quantization="
                f"{quantization}; set language_model.quantization=null"
            )
        _require("bitsandbytes", f"language_model.quantization={quantization}")
        if quantization == "8bit":
            options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        else:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=DTYPES.get(dtype) or config.dtype or torch.float32,
            )
    if quantization is not None or stored is not None:
        _require("accelerate", "a quantised model")
        options["device_map"] = {"": device} if device_map is None else device_map
    elif device_map is not None:
        _require("accelerate", f"language_model.device_map={device_map}")
        options["device_map"] = device_map
    return options


def max_context_length(model: nn.Module) -> int | None:
    """Return the tokens of the longest row a model has positions for; None: any length."""
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1 on.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    config: Any = model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _require(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{what} needs {package}: pip install {package}")
