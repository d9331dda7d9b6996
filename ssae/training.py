"""How every arm of a study is trained."""

import dataclasses
import functools
from typing import Any

from ssae.settings import check_types

SHARES = {"decay_share": 0.2, "resample_share": 0.75, "recycle_firing_rate": 0}
INITIAL_B_DECS = ("mean", "geometric_median", "zeros")


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
        for name, example in (
            ("batch_size_tokens", 1024),
            ("dead_after_tokens", 100_000),
            ("checkpoint_every_steps", 500),
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"training.{name} must be at least 1, got {getattr(self, name)}; "
                    f"set training.{name}={example}"
                )
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
