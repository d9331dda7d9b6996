"""What became of an SAE's latents since the SAE it started from (arXiv 2411.00743, 17, 18, 20)."""

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024
"""Directions at a time where every one is compared with every other."""


def forgetting(fvu: np.ndarray, generalist: np.ndarray) -> np.ndarray:
    """Return what specialising costs on general text: fvu / fvu of the generalist - 1.

    Args:
        fvu: (...) of an SAE on general text.
        generalist: (...) of the generalist, on the same resamples.
    """
    return fvu / generalist - 1


def activation_log_ratios(fires: Tensor, reference: Tensor) -> np.ndarray:
    """Return log( a_j / sum_l a_l ) - log( b_j / sum_l b_l ), natural, a = fires + 1/2.

    b is the same of the reference, whose latent j latent j started from. Latents that fire in
    neither say nothing and are left out of the result, not of the sums.

    Args:
        fires: (num,) number of tokens on which each latent fired.
        reference: (num,) of the reference, on the same tokens.
    """
    a, b = fires.double() + 0.5, reference.double() + 0.5
    ratios = (a / a.sum()).log() - (b / b.sum()).log()
    return ratios[(fires > 0) | (reference > 0)].numpy()


def decoder_cosines(W_dec: Tensor, reference: Tensor) -> np.ndarray:
    """Return cos(W_dec[j], reference[j]) (num,) of directions (num, d_in) that correspond."""
    cosines = torch.cosine_similarity(W_dec, reference, dim=1)
    return cosines.clamp(-1, 1).double().cpu().numpy()


def nearest_cosines(W_dec: Tensor, reference: Tensor) -> np.ndarray:
    """Return max_l cos(W_dec[j], reference[l]), (d_sae,).

    Args:
        W_dec: (d_sae, d_in).
        reference: (num, d_in), on the same device.
    """
    others = torch.nn.functional.normalize(reference, dim=1)
    found = [
        (torch.nn.functional.normalize(piece, dim=1) @ others.T).amax(1)
        for piece in W_dec.split(CHUNK)
    ]
    return torch.cat(found).clamp(-1, 1).double().cpu().numpy()
