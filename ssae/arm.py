"""An arm, one SAE of a study, and how every arm is trained."""

import dataclasses
import functools
from typing import Any

import torch

from ssae.objective.base import Objective
from ssae.retriever.base import Retriever
from ssae.settings import check_least, check_types

STARTS = ("fine_tune", "recycle", "residual")
EXAMPLES = {
    "budget_tokens": "budget_tokens=250_000",
    "num_tokens": "specialist.num_tokens=600_000",
    "lr": "specialist.lr=1e-3",
    "start": "specialist.start=fine_tune",
    "general_share": "specialist.general_share=0.4",
    "num_snapshots": "generalist.num_snapshots=2",
}
"""How settings of an arm are typed: several arms share one."""
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
            (dead_latents/recycle.py). residual: it is frozen, extra latents learn what it leaves
            over (sae/residual.py).
        objective: how the losses of tokens become one number.
        num_tokens: tokens trained on; more than the budget means several epochs, 0 takes the SAE of
            `init_from` as it is.
        lr: learning rate of this arm.
        general_share: of the arm's text, in [0, 1), that is random documents of the pool, added to
            the retrieved ones against forgetting (mix.py).
        num_snapshots: weights kept on the way, for TracIn (training/snapshots.py); 0 for none, as
            where num_tokens is 0.
    """

    retriever: Retriever
    budget_tokens: int
    init_from: str | None
    start: str
    objective: Objective
    num_tokens: int
    lr: float
    general_share: float = 0.0
    num_snapshots: int = 0

    def __post_init__(self) -> None:
        check_types(self, remedy=_remedy)
        for name, wanted in (("retriever", Retriever), ("objective", Objective)):
            if not isinstance(getattr(self, name), wanted):
                raise ValueError(
                    f"the {name} of an arm must be one, got {getattr(self, name)!r}; null takes an "
                    "arm out: arms.<arm>=null (the control's retriever is compare.random)"
                )
        if self.budget_tokens < 1:
            raise ValueError(
                f"budget_tokens must be at least 1, got {self.budget_tokens}; "
                + _remedy("budget_tokens")
            )
        if self.num_tokens < 0:
            raise ValueError(
                f"num_tokens must not be negative, got {self.num_tokens}; {_remedy('num_tokens')}"
            )
        if self.num_tokens == 0 and self.init_from is None:
            raise ValueError(
                "an arm with num_tokens=0 needs init_from=<saved SAE>: it would be untrained"
            )
        if self.start not in STARTS:
            raise ValueError(
                f"start must be one of {', '.join(STARTS)}, got {self.start!r}; {_remedy('start')}"
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
            raise ValueError(f"lr must be positive, got {self.lr}; {_remedy('lr')}")
        if not 0 <= self.general_share < 1:
            raise ValueError(
                f"general_share must lie in [0, 1), got {self.general_share}; "
                + _remedy("general_share")
            )
        if self.num_snapshots < 0:
            raise ValueError(
                f"num_snapshots must not be negative, got {self.num_snapshots}; "
                + _remedy("num_snapshots")
            )


def _remedy(name: str) -> str:
    return f"set {name} of that arm, e.g. {EXAMPLES[name]}"


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
        resample_every_steps: dead latents start anew so often (dead_latents/resample.py);
            null: never.
        resample_share: over this share of the run, from its start, that they may settle.
        recycle_firing_rate: latents that fire on at most this share of an arm's tokens are recycled
            where start=recycle; 0: those that never fire.
        sparsity_warmup_steps: the sparsity penalty, of SAEs that have one, rises over these steps.
        screening: auto searches the active latents in bfloat16 where the hardware is fast at it and
            scores them again in float32; exact never does.
        checkpoint_every_steps: how much work an interruption may cost.
        optimality_every_steps: how far the dictionary is from stationary is logged so often
            (training/optimality.py); null: never.
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
    optimality_every_steps: int | None = dataclasses.field(
        default=None, metadata={"content": False}
    )

    def __post_init__(self) -> None:
        check_types(self, "training.")
        if not isinstance(self.optimizer, functools.partial):
            raise ValueError(
                f"training.optimizer must be an optimiser's config, got {self.optimizer!r}; set "
                "training.optimizer._target_=torch.optim.AdamW"
            )
        try:
            self.optimizer([torch.zeros(1, requires_grad=True)], lr=1e-3)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"training.optimizer cannot be made: {error}; see `ssae train --cfg job`"
            ) from error
        bounds = {
            "batch_size_tokens": (1, 1024),
            "dead_after_tokens": (1, 100_000),
            "checkpoint_every_steps": (1, 500),
        }
        check_least(self, bounds, "training.")
        for name in ("warmup_steps", "sparsity_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"training.{name} must not be negative, got {getattr(self, name)}; "
                    f"set training.{name}=100"
                )
        if self.screening not in ("auto", "exact"):
            raise ValueError(
                f"training.screening must be auto or exact, got {self.screening!r}; "
                "set training.screening=auto"
            )
        if self.initial_b_dec not in INITIAL_B_DECS:
            raise ValueError(
                f"training.initial_b_dec must be one of {', '.join(INITIAL_B_DECS)}, got "
                f"{self.initial_b_dec!r}; set training.initial_b_dec=mean"
            )
        for name, example in (("resample_every_steps", 1000), ("optimality_every_steps", 500)):
            every = getattr(self, name)
            whole = isinstance(every, int) and not isinstance(every, bool)
            if every is not None and not (whole and every >= 1):
                raise ValueError(
                    f"training.{name} must be null or a whole number of at least 1, got "
                    f"{every!r}; set training.{name}={example}"
                )
        for name, example in SHARES.items():
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"training.{name} must lie in [0, 1], got {getattr(self, name)}; "
                    f"set training.{name}={example}"
                )
