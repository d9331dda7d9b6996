"""A study: everything one composed config describes. Every verb takes one."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ssae.activation.packing import POLICIES
from ssae.corpus.base import Corpus
from ssae.language_model import LanguageModel
from ssae.objective.base import Objective
from ssae.retriever.base import Retriever


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One SAE of a study: which documents it learns from, where it starts, what it minimises.

    Args:
        retriever: chooses the documents.
        budget_tokens: how much text it may choose.
        init_from: where the weights start: null (fresh), the name of another arm, or a saved SAE.
        objective: how the losses of tokens become one number.
        num_tokens: tokens trained on; more than the budget means several epochs, 0 takes the SAE of
            `init_from` as it is.
        lr: learning rate of this arm.
    """

    retriever: Retriever
    budget_tokens: int
    init_from: str | None
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
        dead_after_tokens: a latent silent for more tokens than this is dead.
        checkpoint_every_steps: how much work an interruption may cost.
    """

    batch_size_tokens: int
    warmup_steps: int
    decay_share: float
    optimizer: functools.partial[Any]
    dead_after_tokens: int
    checkpoint_every_steps: int = dataclasses.field(metadata={"content": False})

    def __post_init__(self) -> None:
        check_types(self, "training.")
        for name in ("batch_size_tokens", "dead_after_tokens", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"training.{name} must be at least 1, got {getattr(self, name)}; "
                    f"set training.{name}=4096"
                )
        if self.warmup_steps < 0:
            raise ValueError(f"training.warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(
                f"training.decay_share must lie in [0, 1], got {self.decay_share}; "
                "set training.decay_share=0.2"
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

    def __post_init__(self) -> None:
        check_types(self)
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
