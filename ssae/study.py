"""A study: everything one composed config describes. Every verb takes one."""

import dataclasses
import functools
import logging
import re
from pathlib import Path
from typing import Any

import torch

from ssae.activation.rows import PACKINGS, POLICIES
from ssae.activation.source import Supply
from ssae.arm import Arm, Training
from ssae.corpus.base import Corpus
from ssae.diagnosis.settings import Diagnose
from ssae.labelled.base import Labelled
from ssae.language_model.frozen import LanguageModel
from ssae.probe.settings import Shift
from ssae.retriever.base import Retriever
from ssae.sae.formats import FORMATS
from ssae.selection import Selection
from ssae.settings import check_least, check_types
from ssae.training.trainer import check_options

log = logging.getLogger(__name__)

HELD_OUT = ("documents", "subdomain_test", "general_test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """What `ssae export` writes.

    Args:
        sae: a saved SAE in any format, or its id on the hub; null: the trained one of `arm`.
        format: ssae, saelens, gemma_scope, dictionary_learning or sparsify.
        path: the folder to write; only the verb export needs it.
    """

    sae: str | None
    format: str
    path: str | None

    def __post_init__(self) -> None:
        check_types(self, "export.")
        if self.format not in FORMATS:
            raise ValueError(
                f"export.format must be one of {', '.join(FORMATS)}, got {self.format!r}; "
                "set export.format=saelens"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polish:
    """The settings of `ssae polish`; defaults are in conf/config.yaml.

    Args:
        sae: a saved SAE in any format, or its id on the hub; null: the trained one of `arm`.
        lam: price of a unit of z, in units of x; null: what a ReLU SAE was trained with, or, where
            that is not known, the median of d_j . r on active pairs; 0 for all others.
        rounds: at most; the first that does not help is the last.
        num_tokens: of the arm's text, drawn one by one, that polishing learns from.
        held_out: whose documents decide, one half which round, the other whether it is kept: a
            test split, or documents of the arm's text that polishing leaves out; null: the test
            split that is like the arm's text, for on documents that training has seen no change
            looks good; documents for a `sae` that was trained elsewhere.
        held_out_tokens: of those at most.
        encoder_steps: of Adam in each round.
        batch_size_tokens: of such a step.
        lr: at its peak, for activations of mean norm sqrt(d_in).
    """

    # Where it lies does not matter: its content is part of the hash.
    sae: str | None = dataclasses.field(metadata={"content": False})
    lam: float | None
    rounds: int
    num_tokens: int
    held_out: str | None
    held_out_tokens: int
    encoder_steps: int
    batch_size_tokens: int
    lr: float

    def __post_init__(self) -> None:
        check_types(self, "polish.")
        bounds = {
            "rounds": (1, 3),
            "num_tokens": (1, 100_000),
            "held_out_tokens": (2, 100_000),
            "encoder_steps": (1, 300),
            "batch_size_tokens": (1, 1024),
        }
        check_least(self, bounds, "polish.")
        if self.sae is not None and not isinstance(self.sae, str):
            raise ValueError(
                f"polish.sae must be null, a folder or an id of the hub, got {self.sae!r}; "
                "set polish.sae=null"
            )
        is_number = isinstance(self.lam, int | float) and not isinstance(self.lam, bool)
        if self.lam is not None and not (is_number and 0 <= self.lam < float("inf")):
            raise ValueError(
                f"polish.lam must be null or a number of at least 0, got {self.lam!r}; "
                "set polish.lam=null"
            )
        if self.held_out is not None and self.held_out not in HELD_OUT:
            raise ValueError(
                f"polish.held_out must be null or one of {', '.join(HELD_OUT)}, got "
                f"{self.held_out!r}; set polish.held_out=general_test"
            )
        if not self.lr > 0:
            raise ValueError(f"polish.lr must be positive, got {self.lr}; set polish.lr=1e-3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The composed config, instantiated; conf/config.yaml documents each key where it stands."""

    name: str
    seed: int
    artifacts: Path
    run_dir: Path
    corpus: Corpus
    language_model: LanguageModel
    hookpoint: str
    hookpoints: list[str] | None
    context_length: int
    bos: str
    packing: str
    activation: Supply
    harvest_batch_tokens: int
    shard_tokens: int
    sae: functools.partial[Any]
    extra_sae: functools.partial[Any] | None
    training: Training
    trainer: functools.partial[Any]
    logger: functools.partial[Any] | None
    arm: str
    arms: dict[str, Arm]
    selection: Selection
    compare: dict[str, Retriever]
    frequency_retriever: Retriever
    frequency_tokens: int
    evaluation_batch_tokens: int
    evaluation_tokens: int
    num_bootstraps: int
    minimise: str
    labelled: Labelled
    shift: Shift
    diagnose: Diagnose
    polish: Polish
    export: Export

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("arms", "compare"):  # null takes one out
            object.__setattr__(self, name, {k: v for k, v in getattr(self, name).items() if v})
        check_options(self.trainer.keywords)
        self.activation.check_batch(self.training.batch_size_tokens)
        for name, make in (("sae", self.sae), ("extra_sae", self.extra_sae)):
            if make is not None:
                _check_sae(name, make)
        starts = {arm.start for arm in self.arms.values()}
        if self.extra_sae is not None and "residual" not in starts:
            log.warning("extra_sae is ignored without specialist.start=residual")
        if self.training.recycle_firing_rate > 0 and "recycle" not in starts:
            log.warning("training.recycle_firing_rate is ignored without specialist.start=recycle")
        if self.bos not in POLICIES:
            raise ValueError(
                f"bos must be one of {', '.join(POLICIES)}, got {self.bos!r}; set bos=row"
            )
        if isinstance(self.hookpoints, str):
            raise ValueError(
                f"hookpoints must be a list, got {self.hookpoints!r}; "
                f"set hookpoints=[{self.hookpoints}]"
            )
        if self.packing not in PACKINGS:
            raise ValueError(
                f"packing must be one of {', '.join(PACKINGS)}, got {self.packing!r}; "
                "set packing=packed"
            )
        for name in ("artifacts", "run_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        bounds = {
            "context_length": (2, 128),
            "harvest_batch_tokens": (1, 2048),
            "shard_tokens": (1, 65_536),
            "evaluation_batch_tokens": (1, 2048),
            "evaluation_tokens": (1, 100_000),
            "frequency_tokens": (1, 1_000_000),
            "num_bootstraps": (2, 1000),
            "seed": (0, 0),
        }
        check_least(self, bounds)
        self.activation.check_rows(self.context_length)
        for name in self.arms:
            chain: list[str | None] = [name]
            while chain[-1] in self.arms:
                chain.append(self.arms[chain[-1]].init_from)
                if chain[-1] in chain[:-1]:
                    path = " from ".join(map(str, chain))
                    raise ValueError(
                        f"arms.{name}.init_from leads in a circle: {path}; "
                        f"set arms.{name}.init_from=null"
                    )
        if not re.fullmatch(r"(subdomain_test|general_test|labelled)/\w+/[\w.]+", self.minimise):
            raise ValueError(
                f"minimise must be <split>/<metric>/<arm>, got {self.minimise!r}; "
                "set minimise=subdomain_test/perplexity_spliced/specialist"
            )
        if self.arm not in self.arms:
            raise ValueError(
                f"arm must be one of {', '.join(self.arms)}, got {self.arm!r}; "
                f"set arm={next(iter(self.arms), '<one of arms>')}"
            )

    def line(self, arm: str) -> list[str]:
        """Return an arm, the arm it starts from, the arm that one starts from, ..."""
        before = self.arms[arm].init_from
        return [arm, *(self.line(before) if before in self.arms else ())]


def _check_sae(name: str, make: functools.partial[Any]) -> None:
    """Refuse arguments of an SAE before the hours that come before it is made."""
    try:
        with torch.device("meta"):
            make(d_in=1)
    except TypeError as error:
        raise ValueError(f"{name} has a wrong argument: {error}") from error
