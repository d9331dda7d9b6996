"""LitHarvest: one rank's share of a harvest, as the step of a LightningModule."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
from rich.progress import Progress

from ssae.activation.capture import capture_text, origins
from ssae.activation.plan import Shard, places_of
from ssae.activation.rows import Rows, batches_of
from ssae.activation.writer import ShardWriter
from ssae.language_model.frozen import LanguageModel
from ssae.process.progress import token_rate


class Work(NamedTuple):
    """A step: a shard, and where it is missing."""

    shard: Shard
    hookpoints: list[str]


class LitHarvest(L.LightningModule):
    """Makes shards; use it with `trainer.predict`.

    The language model is no submodule: Lightning would move it, and what is quantised or spread
    over devices stays where it is.

    Args:
        lm: the language model.
        rows: the text.
        writers: {hookpoint: where its shards go}.
        batch_tokens: of a forward pass, padding included.
        progress: advanced by the tokens of each forward pass, if there is one.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rows: Rows,
        writers: Mapping[str, ShardWriter],
        batch_tokens: int,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.lm, self.rows, self.writers, self.batch_tokens = lm, rows, writers, batch_tokens
        self.progress, self._done = progress, 0

    def predict_step(self, work: Work) -> int:
        """Make one shard; return its number.

        Raises:
            ValueError: an activation is not finite, or a shard could not be written.
        """
        shard, hookpoints = work
        writers = {name: self.writers[name] for name in hookpoints}
        for writer in writers.values():
            writer.start(shard.number, shard.first_token, shard.num_tokens)
        for row_ids in batches_of(self.rows, shard.row_ids, self.batch_tokens):
            batch = self.rows.batch(row_ids)
            captured = capture_text(self.lm, batch, hookpoints)
            places, where_from = places_of(self.rows, shard.row_ids, row_ids), origins(batch)
            for name, writer in writers.items():
                writer.write(captured[name], where_from, places)
            self._advance(len(where_from))
        for writer in writers.values():
            writer.finish()
        self.rows.forget()
        return shard.number

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leave the work as it is: the language model knows where its input goes."""
        return batch

    def _advance(self, num_tokens: int) -> None:
        for task in self.progress.tasks:
            self._done += num_tokens
            shown = token_rate(task, self._done)
            if self.trainer.world_size > 1:
                shown += f" on each of {self.trainer.world_size} ranks"
            self.progress.update(task.id, completed=self._done, rate=shown)
