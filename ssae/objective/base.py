"""An objective turns the losses of the global batch into the number that is minimised."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from ssae.activation.rows import Rows
from ssae.activation.shards import Tokens


class Losses(NamedTuple):
    """The losses of one rank's tokens, in units of the variance of the activations."""

    errors: Tensor
    """(n,) reconstruction."""
    penalties: Tensor | None = None
    """(n,) sparsity, of SAEs that have a penalty."""
    tokens: Tokens | None = None
    """What they are the losses of; only objectives over groups need it."""
    progress: float = 1.0
    """Share of the run that is done, in [0, 1]."""
    variance: float = 1.0
    """E||activation - mean||^2, which the losses were divided by."""

    @property
    def totals(self) -> Tensor:
        """(n,) errors + penalties."""
        return self.errors if self.penalties is None else self.errors + self.penalties


class Memory(nn.Module):
    """What an objective keeps between batches; buffers, so that checkpoints hold them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the module, but stay in float64 where its weights become bfloat16."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def __getattr__(self, name: str) -> Any:
        """Return a buffer; only tells type checkers that it may have any name."""
        return super().__getattr__(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Reduces the losses of the batches of all ranks to one number; a variant overrides `__call__`.

    An objective is settings only. What it keeps between batches is a `Memory`, which belongs to
    the run.
    """

    def memory(self, rows: Rows | None) -> Memory:
        """Return the memory of a run that is about to start.

        Args:
            rows: all text of the arm; None where the objective does not ask for its counts.
        """
        return Memory({})

    def __call__(self, losses: Losses, memory: Memory) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss, what to log), and bring the memory up to date.

        The mean over ranks of d loss / d theta, which is what DDP computes, is the gradient of the
        objective over the global batch; ranks hold equally many tokens.
        """
        raise NotImplementedError
