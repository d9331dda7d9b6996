"""What transformers loads and where it puts it: safetensors only, no code of a repository."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ssae.language_model.hooks import AUTO

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
QUANTIZATIONS = ("8bit", "4bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


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
    _check_4bit(model, name, getattr(config, "quantization_config", None) is not None)
    return model


def _check_4bit(model: nn.Module, name: str, is_stored: bool) -> None:
    """Refuse shapes that bitsandbytes cannot multiply on this CPU, before the first forward.

    Which these are depends on its version and on the CPU, so it is asked: a layer of each shape
    beside the model's own, which its first product would change.
    """
    shapes: dict[tuple[Any, Any], str] = {
        (layer.in_features, layer.out_features): path
        for path, layer in model.named_modules()
        if type(layer).__name__ == "Linear4bit" and layer.weight.device.type == "cpu"
    }
    for (d_in, d_out), path in shapes.items():
        from bitsandbytes.nn.modules import Linear4bit  # there: the model has one

        with torch.random.fork_rng(devices=[]):  # the weights are drawn
            layer = Linear4bit(d_in, d_out, bias=False, quant_type="nf4").to("cpu").eval()
        try:
            with torch.inference_mode():
                layer(torch.zeros(1, d_in))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"language model {name!r} does not run in 4bit on this CPU: bitsandbytes cannot "
                f"multiply by {path}, {d_out} x {d_in} ({error}); set language_model.device=cuda"
                + (
                    " or language_model.name=<a model that is not stored in 4bit>"
                    if is_stored
                    else ", language_model.quantization=8bit or language_model.quantization=null"
                )
            ) from error


def check_devices(device: Any, device_map: Any) -> None:
    """Refuse names of devices that torch does not know.

    Raises:
        ValueError: names the setting, and what it may be.
    """
    if device != AUTO and not _is_device(device):
        raise ValueError(
            "language_model.device must be auto or a torch device (cpu, cuda, cuda:1), got "
            f"{device!r}; set language_model.device=auto"
        )
    if isinstance(device_map, Mapping):
        wrong = {
            path: place
            for path, place in device_map.items()
            if not (place == "disk" or type(place) is int or _is_device(place))
        }
        if wrong:
            raise ValueError(
                "language_model.device_map must give torch devices (cpu, cuda:0), numbers of GPUs "
                f"or disk, got {wrong}; set language_model.device_map=auto"
            )
    elif device_map is not None and device_map not in DEVICE_MAPS and not _is_device(device_map):
        raise ValueError(
            f"language_model.device_map must be null, {', '.join(DEVICE_MAPS)}, a torch device "
            f"(cpu, cuda:0) or a dict {{module path: device}}, got {device_map!r}; "
            "set language_model.device_map=auto"
        )


def _is_device(name: Any) -> bool:
    try:
        return isinstance(name, str) and torch.device(name).type != "meta"
    except RuntimeError:
        return False


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
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    on_gpu = [place for place in places if type(place) is int or str(place).startswith("cuda")]
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(
            f"language_model.device_map puts the model on {on_gpu[0]}, and torch sees no GPU; set "
            "language_model.device_map=auto"
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
