"""Activations of the text of a batch of rows, and where each comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssae.activation.rows import Batch
from ssae.language_model.frozen import LanguageModel


class NonFinite(ValueError):
    """An activation, a loss or a weight is not finite."""


def capture_text(lm: LanguageModel, batch: Batch, hookpoints: Sequence[str]) -> dict[str, Tensor]:
    """Return {hookpoint: (num_text, d_in)} of the tokens of `batch.text`, in reading order.

    One forward; on the device and in the dtype of the module's output.
    """
    where = _places(batch)

    def text_of(x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, where.to(x.device, non_blocking=True))

    return lm.read(batch.input_ids, hookpoints, text_of, batch.attention_mask)


def origins(batch: Batch) -> Tensor:
    """Return (num_text, 3) int32 on the CPU, rows as in `capture_text`.

    The columns are token id, document and position in the row.
    """
    where = _places(batch)
    found = torch.empty(len(where), 3, dtype=torch.int32)
    found[:, 0] = batch.input_ids.flatten().index_select(0, where)
    found[:, 1] = batch.document_ids.flatten().index_select(0, where)
    found[:, 2] = where % batch.text.shape[1]
    return found


def not_finite(where: str, origin: Tensor, dtype: torch.dtype) -> NonFinite:
    """Return the error of an activation that is not finite.

    Args:
        where: hookpoint, and shard or window.
        origin: (3,) as in `origins`, of its token.
        dtype: of the activations.
    """
    token_id, document, position = origin.tolist()
    remedy = "set language_model.dtype=float32"
    if dtype == torch.float32:
        remedy = "the model computes in float32 already: look for what is not finite in its weights"
    # Attention carries what is not finite along the row: the token at fault may be a later one.
    return NonFinite(
        f"the language model gave a non-finite activation at {where}, first in the row of document "
        f"{document} at position {position} (token id {token_id}); {remedy}"
    )


def _places(batch: Batch) -> Tensor:
    """Return where in the flattened batch its text is, (num_text,)."""
    return batch.text.flatten().nonzero()[:, 0]
