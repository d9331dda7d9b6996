"""dictionary_learning: `ae.pt` (torch.save of a state_dict) beside `config.json`, in `trainer_{i}`.

config.json {"trainer": {dict_class, activation_dim, dict_size, k, lm_name, submodule_name, ...}}

    dict_class              ours        tensors (F = d_sae, d = d_in; .weight is (out, in))
    AutoEncoder             relu        encoder.weight, encoder.bias, decoder.weight (d, F), bias
    AutoEncoderNew          relu        encoder.*, decoder.weight, decoder.bias; not subtracted
    GatedAutoEncoder        gated       encoder.weight, gate_bias, mag_bias, r_mag,
                                        decoder.weight, decoder_bias
    AutoEncoderTopK         topk        encoder.*, decoder.weight, b_dec, k (), threshold ()
    BatchTopKSAE            batchtopk   the same
    MatryoshkaBatchTopKSAE  matryoshka  W_enc (d, F), b_enc, W_dec (F, d), b_dec, k (),
                                        threshold (), group_sizes
    JumpReluAutoEncoder     jumprelu    W_enc, b_enc, W_dec, b_dec, threshold (F); not subtracted

A threshold of -1 means that training never set it: every positive latent is kept, as with 0. For
AutoEncoderTopK it is an alternative to the top k and not used unless asked for. Its own loader
rescales an AutoEncoder's decoder to norm 1 (the reconstruction stays, latents change); here weights
are what the file says. The rolling backup of a run has the same file name and is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssae.sae.formats.content import Content, with_subtraction, with_training_defaults
from ssae.sae.formats.untrusted import Tensors, read_json, whole
from ssae.sae.formats.zipped import NotOnlyTensorsError, open_torch

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = (WEIGHTS, CONFIG)
NEEDS = f"{CONFIG} (with trainer.dict_class) and {WEIGHTS}"
HOLDS = ("relu", "topk", "gated", "jumprelu", "batchtopk", "matryoshka")

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    # dict_class: architecture, subtract_b_dec, our name of each tensor
    "AutoEncoder": ("relu", True, LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": ("relu", False, LINEAR | {"decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        {
            "encoder.weight": "W_enc",
            "gate_bias": "b_enc",
            "mag_bias": "b_mag",
            "r_mag": "r_mag",
            "decoder.weight": "W_dec",
            "decoder_bias": "b_dec",
        },
    ),
    "AutoEncoderTopK": ("topk", True, LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": ("batchtopk", True, LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("matryoshka", True, PLAIN | {"threshold": "threshold"}),
    "JumpReluAutoEncoder": ("jumprelu", False, PLAIN | {"threshold": "threshold"}),
}
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}
BACKUP = {"ae", "optimizer", "step"}


def holds(folder: Path) -> bool:
    """Whether there is an `ae.pt`."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Content:
    """Return the SAE in `folder`."""
    path = folder / CONFIG
    trainer = read_json(path).get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    dict_class = trainer.get("dict_class")
    if not isinstance(dict_class, str) or dict_class not in CLASSES:
        raise ValueError(
            f"{path}: trainer.dict_class must be one of {', '.join(CLASSES)}, it is "
            f"{str(dict_class)[:40]!r}"
        )
    architecture, subtract_b_dec, names = CLASSES[dict_class]
    d_in, d_sae = whole(trainer, "activation_dim", path), whole(trainer, "dict_size", path)
    known: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "subtract_b_dec": subtract_b_dec}
    file = _open(folder)
    # Whole numbers, and a threshold where the top k decides: they are no weights here.
    aside = {"k", "group_sizes"} | ({"threshold"} if architecture == "topk" else set())
    if "k" in file.shapes or "k" in trainer:
        known["k"] = _k(file, trainer, path)
    if architecture == "matryoshka":
        known["group_sizes"] = _group_sizes(file, d_sae)
    shapes = {name: _shape(name, ours, d_in, d_sae, architecture) for name, ours in names.items()}
    rest = {name: shape for name, shape in file.shapes.items() if name not in aside}
    found = file._replace(shapes=rest).take(shapes, CONFIG)
    weights = {
        ours: found[name].T.contiguous() if name.endswith(".weight") else found[name]
        for name, ours in names.items()
    }
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].clamp(min=0)
    metadata = _metadata(trainer, file)
    return Content(architecture, with_training_defaults(architecture, known), weights, metadata)


def write(content: Content, folder: Path) -> None:
    """Write the two files into `folder`."""
    subtracts = content.hyperparameters["subtract_b_dec"]
    fitting = {
        subtract: name
        for name, (architecture, subtract, _) in CLASSES.items()
        if architecture == content.architecture
    }
    # relu has a class for either; the others have one, and b_dec is folded to fit it.
    subtract, dict_class = (
        (subtracts, fitting[subtracts]) if subtracts in fitting else next(iter(fitting.items()))
    )
    content = with_subtraction(content, subtract)
    given, names = content.hyperparameters, CLASSES[dict_class][2]
    tensors: dict[str, Tensor] = {
        name: content.weights[ours].T.contiguous()
        if name.endswith(".weight")
        else content.weights[ours]
        for name, ours in names.items()
    }
    known = {"activation_dim": given["d_in"], "dict_size": given["d_sae"]}
    if "k" in given:
        known["k"] = given["k"]
        tensors["k"] = torch.tensor(given["k"], dtype=torch.int32)
    if content.architecture == "topk":
        tensors["threshold"] = torch.tensor(-1.0)
    if content.architecture == "matryoshka":
        known["group_sizes"] = list(given["group_sizes"])
        tensors["group_sizes"] = torch.tensor(given["group_sizes"])
    hookpoint = content.metadata.get("hookpoint")
    layer = re.search(r"\.(\d+)", str(hookpoint))
    config = {
        "trainer": {
            "trainer_class": TRAINERS[dict_class],
            "dict_class": dict_class,
            **known,
            "layer": int(layer[1]) if layer else None,
            "lm_name": content.metadata.get("language_model"),
            "submodule_name": hookpoint,
            "ssae": content.metadata,
        },
        "buffer": {},
    }
    text = json.dumps(config, indent=1)
    # clone: torch.save writes the whole storage that a view looks into
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _open(folder: Path) -> Tensors:
    path = folder / WEIGHTS
    try:
        return open_torch(path)
    except NotOnlyTensorsError as error:
        if set(error.keys) >= BACKUP:
            raise ValueError(
                f"{path} is the backup of a run in progress (keys {', '.join(error.keys)}), not an "
                "SAE; take ae.pt when training is done, or save its 'ae' alone with torch.save"
            ) from error
        raise


def _k(file: Tensors, trainer: dict[str, Any], path: Path) -> int:
    found = file.integers("k") if file.shapes.get("k") == () else []
    said = whole(trainer, "k", path) if "k" in trainer else None
    if "k" in file.shapes and len(found) != 1 or (found and said not in (None, found[0])):
        raise ValueError(f"{file.path}: k must be the one number of config.json, {said}: {found}")
    return whole({"k": found[0] if found else said}, "k", path)


def _group_sizes(file: Tensors, d_sae: int) -> list[int]:
    sizes = file.integers("group_sizes") if len(file.shapes.get("group_sizes", ())) == 1 else []
    if not sizes or min(sizes) < 1 or sum(sizes) != d_sae:
        raise ValueError(
            f"{file.path}: group_sizes must be positive whole numbers that sum to {d_sae}, they "
            f"are {sizes[:8]}"
        )
    return sizes


def _shape(name: str, ours: str, d_in: int, d_sae: int, architecture: str) -> tuple[int, ...]:
    if ours == "threshold" and architecture != "jumprelu":
        return ()
    shape = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}.get(ours, (d_sae,))
    return shape[::-1] if name.endswith(".weight") else shape


def _metadata(trainer: dict[str, Any], file: Tensors) -> dict[str, Any]:
    if isinstance(ours := trainer.get("ssae"), dict):
        return ours
    named = {"language_model": trainer.get("lm_name"), "hookpoint": trainer.get("submodule_name")}
    return named | {"layer": trainer.get("layer"), "steps": trainer.get("steps")}
