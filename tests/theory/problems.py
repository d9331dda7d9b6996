"""What tests of codes and directions both begin with."""

import numpy as np
import torch
from scipy import sparse


def problem(sample, seed=0, **sizes):
    """Tokens, sparse codes on random active sets, and directions of norm 1; float64."""
    drawn = sample(seed, **sizes)
    z = sparse.csr_matrix(drawn.z.numpy())
    return drawn.x, z, torch.nn.functional.normalize(drawn.W_dec)


def objective(x, z, D, lam, ends):
    """By hand: the mean over prefixes of half the squared error, and the price."""
    errors = [np.square(x - z[:, :end] @ D[:end]).sum(1) for end in ends]
    return float((np.mean(errors, 0) / 2 + lam * z.sum(1)).mean())
