"""What `ssae polish` does."""

import dataclasses

from ssae.settings import check_least, check_types

HELD_OUT = ("documents", "subdomain_test", "general_test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polish:
    """The settings of `ssae polish`; defaults are in conf/config.yaml.

    Args:
        sae: a saved SAE in any format, or its id on the hub; null: the trained one of `arm`.
        lam: price of a unit of z, in units of x; null: what a ReLU SAE was trained with, or, where
            that is not known, the median of d_j . r on active pairs; 0 for all others.
        rounds: at most; the first that does not help is the last.
        num_tokens: of the arm's text, drawn one by one, that polishing learns from.
        held_out: whose tokens decide: a test split, or documents of the arm's text that polishing
            leaves out; null: documents for a given `sae`, else the test split that is like the
            arm's text, for on documents that training has seen no change looks good.
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
