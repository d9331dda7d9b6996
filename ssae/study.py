"""A study: everything one composed config describes. Every verb takes one."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import torch

from ssae.activation.packing import POLICIES
from ssae.corpus.base import Corpus
from ssae.language_model import LanguageModel
from ssae.objective.base import Objective
from ssae.retriever.base import Retriever
from ssae.sae.formats import FORMATS

log = logging.getLogger(__name__)


def check_types(settings: Any, prefix: str = "") -> None:
    """Refuse numbers and texts of the wrong type before they fail somewhere else.

    Raises:
        ValueError: names the setting, what it must be and what it is.
    """
    words = {int: "a whole number", float: "a number", str: "a text"}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        wanted = (int, float) if field.type is float else field.type
        if field.type in words and (isinstance(value, bool) or not isinstance(value, wanted)):  # pyright: ignore[reportArgumentType]
            hint = f"; write {int(value)}" if isinstance(value, float) and value % 1 == 0 else ""
            rule = f"{prefix}{field.name} must be {words[field.type]}"
            raise ValueError(f"{rule}, got {value!r}{hint}")


STARTS = ("fine_tune", "recycle", "residual")
SHARES = {"decay_share": 0.2, "resample_share": 0.75, "recycle_firing_rate": 0}
INITIAL_B_DECS = ("mean", "geometric_median", "zeros")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One SAE of a study: which documents it learns from, where it starts, what it minimises.

    Args:
        retriever: chooses the documents.
        budget_tokens: how much text it may choose.
        init_from: where the weights start: null (fresh), the name of another arm, or a saved SAE.
        start: what becomes of the SAE of `init_from`. fine_tune: all of it is trained on. recycle:
            likewise, after latents that never fire on the arm's activations are started anew
            (recycle.py). residual: it is frozen, extra latents learn what it leaves over
            (sae/residual.py).
        objective: how the losses of tokens become one number.
        num_tokens: tokens trained on; more than the budget means several epochs, 0 takes the SAE of
            `init_from` as it is.
        lr: learning rate of this arm.
    """

    retriever: Retriever
    budget_tokens: int
    init_from: str | None
    start: str
    objective: Objective
    num_tokens: int
    lr: float

    def __post_init__(self) -> None:
        check_types(self)
        if self.budget_tokens < 1:
            raise ValueError(f"budget_tokens must be at least 1, got {self.budget_tokens}")
        if self.num_tokens < 0:
            raise ValueError(f"num_tokens must not be negative, got {self.num_tokens}")
        if self.num_tokens == 0 and self.init_from is None:
            raise ValueError(
                "an arm with num_tokens=0 needs init_from=<saved SAE>: it would be untrained"
            )
        if self.start not in STARTS:
            raise ValueError(
                f"start must be one of {', '.join(STARTS)}, got {self.start!r}; "
                "set specialist.start=fine_tune"
            )
        if self.start != "fine_tune":
            needs = f"start={self.start} needs"
            if self.init_from is None:
                raise ValueError(f"{needs} a generalist; set init_from=generalist in that arm")
            if self.num_tokens == 0:
                raise ValueError(
                    f"{needs} tokens to learn from, num_tokens=0 takes the SAE of init_from as it "
                    "is; set start=fine_tune in that arm"
                )
        if not self.lr > 0:
            raise ValueError(
                f"lr must be positive, got {self.lr}; set generalist.lr or specialist.lr to 1e-3"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How every arm is trained.

    Args:
        batch_size_tokens: tokens a step, over all ranks.
        warmup_steps: the learning rate rises linearly over these steps.
        decay_share: it falls linearly to zero over this share of the run, at its end.
        optimizer: takes parameters and lr, e.g. a partial of torch.optim.Adam.
        initial_b_dec: of a fresh SAE: mean or geometric_median of the activations, or zeros.
        dead_after_tokens: a latent silent for more tokens than this is dead.
        resample_every_steps: dead latents start anew so often (resample.py); null: never.
        resample_share: over this share of the run, from its start, that they may settle.
        recycle_firing_rate: latents that fire on at most this share of an arm's tokens are recycled
            where start=recycle; 0: those that never fire.
        sparsity_warmup_steps: the sparsity penalty, of SAEs that have one, rises over these steps.
        screening: auto searches the active latents in bfloat16 where the hardware is fast at it and
            scores them again in float32; exact never does.
        checkpoint_every_steps: how much work an interruption may cost.
    """

    batch_size_tokens: int
    warmup_steps: int
    decay_share: float
    optimizer: functools.partial[Any]
    dead_after_tokens: int
    initial_b_dec: str
    resample_every_steps: int | None
    resample_share: float
    recycle_firing_rate: float = dataclasses.field(metadata={"content": False})  # see train.py
    sparsity_warmup_steps: int
    screening: str
    checkpoint_every_steps: int = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "training.")
        if not isinstance(self.optimizer, functools.partial):
            raise ValueError(
                f"training.optimizer must be an optimiser's config, got {self.optimizer!r}; set "
                "training.optimizer._target_=torch.optim.AdamW"
            )
        for name in ("batch_size_tokens", "dead_after_tokens", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"training.{name} must be at least 1, got {getattr(self, name)}; "
                    f"set training.{name}=4096"
                )
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, got {getattr(self, name)}")
        if self.screening not in ("auto", "exact"):
            raise ValueError(f"training.screening must be auto or exact, got {self.screening!r}")
        if self.initial_b_dec not in INITIAL_B_DECS:
            raise ValueError(
                f"training.initial_b_dec must be one of {', '.join(INITIAL_B_DECS)}, got "
                f"{self.initial_b_dec!r}; set training.initial_b_dec=mean"
            )
        every = self.resample_every_steps
        whole = isinstance(every, int) and not isinstance(every, bool)
        if every is not None and not (whole and every >= 1):
            raise ValueError(
                "training.resample_every_steps must be null or a whole number of at least 1, got "
                f"{every!r}; set training.resample_every_steps=1000"
            )
        for name, example in SHARES.items():
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"training.{name} must lie in [0, 1], got {getattr(self, name)}; "
                    f"set training.{name}={example}"
                )


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
class Study:
    """The composed config, instantiated; conf/config.yaml documents each key where it stands."""

    name: str
    seed: int
    artifacts: Path
    run_dir: Path
    corpus: Corpus
    language_model: LanguageModel
    hookpoint: str
    context_length: int
    bos: str
    harvest_batch_tokens: int
    shard_tokens: int
    sae: functools.partial[Any]
    extra_sae: functools.partial[Any] | None
    training: Training
    trainer: functools.partial[Any]
    logger: functools.partial[Any] | None
    arm: str
    arms: dict[str, Arm]
    compare: dict[str, Retriever]
    frequency_retriever: Retriever
    frequency_tokens: int
    evaluation_batch_tokens: int
    evaluation_tokens: int
    num_bootstraps: int
    export: Export

    def __post_init__(self) -> None:
        check_types(self)
        for name, make in (("sae", self.sae), ("extra_sae", self.extra_sae)):
            if make is not None:
                _check_sae(name, make)
        starts = {arm.start for arm in self.arms.values()}
        if self.extra_sae is not None and "residual" not in starts:
            log.warning("extra_sae is ignored without specialist.start=residual")
        if self.training.recycle_firing_rate > 0 and "recycle" not in starts:
            log.warning("training.recycle_firing_rate is ignored without specialist.start=recycle")
        if self.bos not in POLICIES:
            raise ValueError(f"bos must be one of {', '.join(POLICIES)}, got {self.bos!r}")
        object.__setattr__(self, "compare", {k: v for k, v in self.compare.items() if v})
        for name in ("artifacts", "run_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        for name, least in (
            ("context_length", 2),
            ("harvest_batch_tokens", 1),
            ("shard_tokens", 1),
            ("evaluation_batch_tokens", 1),
            ("evaluation_tokens", 1),
            ("frequency_tokens", 1),
            ("num_bootstraps", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in self.arms:
            chain: list[str | None] = [name]
            while chain[-1] in self.arms:
                chain.append(self.arms[chain[-1]].init_from)
                if chain[-1] in chain[:-1]:
                    path = " from ".join(map(str, chain))
                    raise ValueError(f"arms.{name}.init_from leads in a circle: {path}")
        if self.arm not in self.arms:
            raise ValueError(f"arm must be one of {', '.join(self.arms)}, got {self.arm!r}")


def _check_sae(name: str, make: functools.partial[Any]) -> None:
    """Refuse arguments of an SAE before the hours that come before it is made."""
    try:
        with torch.device("meta"):
            make(d_in=1)
    except TypeError as error:
        raise ValueError(f"{name} has a wrong argument: {error}") from error
