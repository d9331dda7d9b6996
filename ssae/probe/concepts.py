"""The concept bottleneck probe of SHIFT's comparison: cosines with the vectors of a few words."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssae.activation.rows import separator_id
from ssae.language_model.frozen import LanguageModel


def concept_features(
    lm: LanguageModel, x: Tensor, words: Sequence[str], hookpoint: str, bos: str
) -> Tensor:
    """Return the cosines (n, num_words) of representations with concept vectors.

    A concept vector is the activation of the word's last token, less the mean over words.

    Args:
        lm: the model.
        x: (n, d_in) pooled activations.
        words: of the label; each is read with a space before it.
        hookpoint: where the probe reads.
        bos: what stands before a word; as in a row.
    """
    start = separator_id(lm.tokenizer, bos)
    vectors = []
    for word in words:
        ids = lm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        row = torch.tensor([[*([] if start is None else [start]), *ids]])
        vectors.append(lm.capture(row, hookpoint)[0, -1].float().cpu())
    concepts = torch.stack(vectors)
    concepts = nn.functional.normalize(concepts - concepts.mean(0), dim=1)
    return nn.functional.normalize(x, dim=1) @ concepts.T
