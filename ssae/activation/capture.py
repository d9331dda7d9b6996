"""Activations of the text of a batch of rows, and where each comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssae.activation.rows import Batch
from ssae.language_model import LanguageModel


def capture_text(lm: LanguageModel, batch: Batch, hookpoints: Sequence[str]) -> dict[str, Tensor]:
    """Return {hookpoint: (num_text, d_in)} of the tokens of `batch.text`, in reading order.

    One forward; on the device and in the dtype of the module's output.
    """
    where = batch.text.flatten().nonzero()[:, 0]

    def text_of(x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, where.to(x.device, non_blocking=True))

    return lm.read(batch.input_ids, hookpoints, text_of, batch.attention_mask)


def origins(batch: Batch) -> Tensor:
    """Return (num_text, 3) int32 on the CPU, rows as in `capture_text`.

    The columns are token id, document and position in the row.
    """
    positions = torch.arange(batch.input_ids.shape[1], dtype=torch.int32)
    columns = (batch.input_ids.int(), batch.document_ids, positions.expand_as(batch.input_ids))
    return torch.stack([column[batch.text] for column in columns], dim=1)
