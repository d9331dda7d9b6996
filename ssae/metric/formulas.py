"""Every number that is a ratio of sums over tokens, each formula once.

A formula maps sums over tokens, {quantity: array (...)}, to a value of the same shape. Sums are
taken over the whole set in float64 and divided once: a mean of per-batch ratios is another number.
Quantities per token, banded by the token itself:

    residual_sq   ||x - recon||^2          deviation_sq   ||x - mu||^2, mu the mean of the set
    active        number of latents > 0    tokens         1

and per prediction, banded by the predicted token:

    ce_clean, ce_spliced, ce_zero   cross-entropy in nats of the untouched model, with x replaced by
                                    recon, and with x replaced by zeros (on text tokens)
    predictions                     1

and the same prediction banded by the token on which it is made: ce_clean_current,
ce_spliced_current, predictions_current. Tokens on which a prediction is made are banded by what is
predicted, too: residual_sq_predicted, deviation_sq_predicted, active_predicted, tokens_predicted.
"""

from collections.abc import Mapping

import numpy as np

Sums = Mapping[str, np.ndarray]


def fvu(sums: Sums) -> np.ndarray:
    """Fraction of variance unexplained: residual_sq / deviation_sq."""
    return sums["residual_sq"] / sums["deviation_sq"]


def l0(sums: Sums) -> np.ndarray:
    """Mean number of active latents per token: active / tokens."""
    return sums["active"] / sums["tokens"]


def fvu_predicted(sums: Sums) -> np.ndarray:
    """Value of fvu by the band of the token that is predicted from the activation."""
    return sums["residual_sq_predicted"] / sums["deviation_sq_predicted"]


def l0_predicted(sums: Sums) -> np.ndarray:
    """Value of l0 by the band of the token that is predicted from the activation."""
    return sums["active_predicted"] / sums["tokens_predicted"]


def ce_clean(sums: Sums) -> np.ndarray:
    """Cross-entropy of the untouched model: ce_clean / predictions."""
    return sums["ce_clean"] / sums["predictions"]


def ce_spliced(sums: Sums) -> np.ndarray:
    """Cross-entropy with x replaced by recon: ce_spliced / predictions."""
    return sums["ce_spliced"] / sums["predictions"]


def ce_zero(sums: Sums) -> np.ndarray:
    """Cross-entropy with x replaced by zeros: ce_zero / predictions."""
    return sums["ce_zero"] / sums["predictions"]


def delta_ce(sums: Sums) -> np.ndarray:
    """What splicing costs: (ce_spliced - ce_clean) / predictions."""
    return (sums["ce_spliced"] - sums["ce_clean"]) / sums["predictions"]


def delta_ce_current(sums: Sums) -> np.ndarray:
    """delta_ce by the band of the current token, on which the prediction is made."""
    cost = sums["ce_spliced_current"] - sums["ce_clean_current"]
    return cost / sums["predictions_current"]


def ce_recovered(sums: Sums) -> np.ndarray:
    """Share of the cost of zero-ablation avoided: (zero - spliced) / (zero - clean)."""
    return (sums["ce_zero"] - sums["ce_spliced"]) / (sums["ce_zero"] - sums["ce_clean"])


def perplexity_clean(sums: Sums) -> np.ndarray:
    """exp(ce_clean)."""
    return np.exp(ce_clean(sums))


def perplexity_spliced(sums: Sums) -> np.ndarray:
    """exp(ce_spliced)."""
    return np.exp(ce_spliced(sums))


def perplexity_ratio(sums: Sums) -> np.ndarray:
    """perplexity_spliced / perplexity_clean = exp(delta_ce): 1 is no damage."""
    return np.exp(delta_ce(sums))


def perplexity_zero(sums: Sums) -> np.ndarray:
    """exp(ce_zero)."""
    return np.exp(ce_zero(sums))


FORMULAS = (
    fvu, l0, fvu_predicted, l0_predicted, ce_clean, ce_spliced, ce_zero, delta_ce,
    delta_ce_current, ce_recovered,
    perplexity_clean, perplexity_spliced, perplexity_ratio, perplexity_zero,
)  # fmt: skip
"""All of them, in the order of metrics.json."""
