"""An objective turns the losses of a batch of tokens into the number that is minimised."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Reduces per-token losses over the batches of all ranks; a variant overrides `__call__`."""

    def __call__(self, losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss, what to log).

        The mean over ranks of d loss / d theta, which is what DDP computes, is the gradient of the
        objective over the global batch; ranks hold equally many tokens.

        Args:
            losses: (n,) per-token losses of this rank, in units of the dataset's variance.
        """
        raise NotImplementedError
