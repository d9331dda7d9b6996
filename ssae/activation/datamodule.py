"""Batches of activations in an order that is a function of (seed, step): position is state.

Tokens are shuffled anew every epoch; epochs follow each other without a seam, so a batch may end
one and begin the next, and every token is seen once per epoch. Step s of a run is always the same
tokens: resuming needs no buffer or generator state, and rank r of R reads its R-th of each batch.
"""

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssae.activation.shards import Activations, Tokens


class BatchOrder:
    """indices(step) -> (batch_size,) token indices; see the module docstring."""

    def __init__(self, num_tokens: int, batch_size: int, seed: int) -> None:
        self.num_tokens, self.batch_size, self.seed = num_tokens, batch_size, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """Return the token indices of a step."""
        start = step * self.batch_size
        stop = start + self.batch_size
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, self.num_tokens)
            end = min(stop, (epoch + 1) * self.num_tokens)
            pieces.append(self._order(epoch)[offset : offset + end - start])
            start = end
        return torch.cat(pieces)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # SeedSequence-style mixing: neighbouring (seed, epoch) pairs give unrelated orders.
            mixed = (self.seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) % 2**63
            generator = torch.Generator().manual_seed(mixed)
            self._permutation = torch.randperm(self.num_tokens, generator=generator)
            self._epoch = epoch
        return self._permutation


class _Batches(Dataset[Tokens]):
    def __init__(self, activations: Activations, order: BatchOrder, rank: int, size: int) -> None:
        self.activations, self.order, self.rank, self.size = activations, order, rank, size

    def __getitem__(self, step: int) -> Tokens:
        share = self.order.batch_size // self.size
        indices = self.order.indices(step)[self.rank * share : (self.rank + 1) * share]
        return self.activations.rows(indices)


class _Steps(Sampler[int]):
    """Steps first .. last - 1; counts from 0 because Lightning counts the resumed ones too."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last))

    def __len__(self) -> int:
        return self.last


class ActivationDataModule(L.LightningDataModule):
    """Serves each rank its slice of the global batch of every step.

    Args:
        activations: the harvested tokens.
        batch_size_tokens: global batch size, over all ranks.
        seed: decides the order.
        num_steps: length of the run.

    Raises:
        ValueError: the ranks cannot share a batch evenly.
    """

    def __init__(
        self, activations: Activations, *, batch_size_tokens: int, seed: int, num_steps: int
    ) -> None:
        super().__init__()
        self.activations, self.num_steps = activations, num_steps
        self.order = BatchOrder(len(activations), batch_size_tokens, seed)

    def train_dataloader(self) -> DataLoader[Tokens]:
        """Return the batches from the trainer's current step on."""
        assert self.trainer is not None
        size = self.trainer.world_size
        if self.order.batch_size % size:
            raise ValueError(
                f"batch_size_tokens ({self.order.batch_size}) must be a multiple of the number of "
                f"ranks ({size}); set training.batch_size_tokens="
                f"{size * max(1, self.order.batch_size // size)}"
            )
        batches = _Batches(self.activations, self.order, self.trainer.global_rank, size)
        steps = _Steps(self.trainer.global_step, self.num_steps)
        return DataLoader(batches, sampler=steps, batch_size=None)
