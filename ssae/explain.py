"""Errors in one line: the rule, what was found, and the remedy."""

import difflib
import inspect
import re
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig

from ssae.artifact.full_disk import REMEDY, is_full_disk
from ssae.config import CONF


def explain(error: BaseException, words: Sequence[str] = ()) -> str:
    """Return one line with the rule, what was found and the remedy.

    Args:
        error: what was raised.
        words: the command line's overrides, which decide what keys there are.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = re.search(r"full_key: ([\w.]+)", str(error))
        where = "" if isinstance(error.__cause__, ValueError) or not key else f"{key.group(1)}: "
        return where + explain(error.__cause__, words)
    text = str(error)
    if isinstance(error, OSError) and is_full_disk(error):
        where = f" ({error.filename})" if error.filename else ", that of artifacts= or of runs="
        return f"the disk is full{where}: {REMEDY}"
    key = re.search(r"(?:Could not override|Key) '([\w./@]+)'", text)
    if key and ("Could not override" in text or "not in struct" in text):
        known = [name for name in _known_keys(words) if name != key.group(1)]
        import lightning

        from ssae.training.trainer import REFUSED

        option = key.group(1).removeprefix("trainer.")
        if option != key.group(1) and option in REFUSED:
            return f"trainer.{option} cannot be had: {REFUSED[option]}"
        if option != key.group(1) and option in inspect.signature(lightning.Trainer).parameters:
            return f"trainer.{option} is not set so far: write +trainer.{option}=..."
        near = difflib.get_close_matches(key.group(1), known, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else "see `ssae run --cfg job`"
        return f"unknown override {key.group(1)!r}: {remedy}"
    missing = re.search(r"Missing mandatory value: [\s\S]*full_key: ([\w.]+)", text)
    if missing:
        return f"{missing.group(1)} has no value: set {missing.group(1)}=..."
    group = re.search(
        r"Could not find '([^']+)'[\s\S]*Available options in '[^']+':([\s\S]*?)\n\S", text
    )
    if group and group.group(1) == "hydra/sweeper/optuna":
        return 'hydra/sweeper=optuna needs an extra: pip install -e ".[optuna]"'
    if group:
        choices = ", ".join(group.group(2).split())
        return f"no config {group.group(1)!r}; choices: {choices}"
    return " ".join(text.split())


def _known_keys(words: Sequence[str]) -> list[str]:
    groups = [str(path.relative_to(CONF)) for path in CONF.iterdir() if path.is_dir()]
    chosen = [word for word in words if word.partition("=")[0] in groups and "," not in word]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = hydra.compose("config", overrides=chosen)
        except HydraException:  # one of them is the error
            cfg = hydra.compose("config")

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, DictConfig):
            return [prefix]
        keys = [walk(node._get_node(key), f"{prefix}.{key}".strip(".")) for key in node]
        return [prefix, *(name for names in keys for name in names)]

    return sorted({name for name in groups + walk(cfg, "") if name})
