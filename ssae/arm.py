"""An arm: one SAE of a study."""

import dataclasses

from ssae.objective.base import Objective
from ssae.retriever.base import Retriever
from ssae.settings import check_types

STARTS = ("fine_tune", "recycle", "residual")


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
