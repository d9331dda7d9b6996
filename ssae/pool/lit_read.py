"""LitRead: one rank's share of a pass over the pool, as the step of a LightningModule."""

from collections.abc import Container, Sequence
from typing import Any

import lightning as L
from rich.progress import Progress

from ssae.pool.blocks import Block, BlockWriter


class LitRead(L.LightningModule):
    """Gives blocks to writers; use it with `trainer.predict`.

    Args:
        writers: (writer, (part, number) of the blocks that it has) each.
        progress: moved by whole parts, if there is a task.
    """

    def __init__(
        self, writers: Sequence[tuple[BlockWriter, Container[tuple[int, int]]]], progress: Progress
    ) -> None:
        super().__init__()
        self.writers, self.progress = writers, progress
        self._num_documents = 0

    def predict_step(self, block: Block | Exception) -> str:
        """Hand one block on; return its name.

        Raises:
            ValueError: a document cannot be read or embedded.
        """
        if isinstance(block, Exception):
            raise block
        for writer, done in self.writers:
            if (block.part, block.number) not in done:
                writer.write(block)
        self._num_documents += block.num_read
        for task in self.progress.tasks:
            rate = self._num_documents / max(task.elapsed or 0, 1e-3)
            shown = f"{self._num_documents:,} documents, {rate:,.0f} documents/s"
            if self.trainer.world_size > 1:
                shown += f" on each of {self.trainer.world_size} ranks"
            self.progress.update(task.id, advance=float(block.ends_part), rate=shown)
        return block.name

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave the documents where they are: an embedder knows where its input goes."""
        return batch
