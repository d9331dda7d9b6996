"""What tests of codes and directions both begin with."""

import numpy as np
import torch
from scipy import sparse


def problem(sample, seed=0, **sizes):
    """Tokens, sparse codes on random active sets, and directions of norm 1; float64."""
    drawn = sample(seed, **sizes)
    z = sparse.csr_matrix(drawn.z.numpy())
    return drawn.x, z, torch.nn.functional.normalize(drawn.W_dec)


def shared_tokens(n, num_concepts, d_in, noise):
    """Tokens (n, d_in) of few directions, with noise: tokens that can share a direction."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(num_concepts, d_in, generator=generator).double()
    on = torch.rand(n, num_concepts, generator=generator) < 0.4
    z = on * (0.5 + torch.rand(n, num_concepts, generator=generator))
    x = z.double() @ torch.nn.functional.normalize(true)
    return x + noise * torch.randn(n, d_in, generator=generator).double()


def objective(x, z, D, lam, ends):
    """By hand: the mean over prefixes of half the squared error, and the price."""
    errors = [np.square(x - z[:, :end] @ D[:end]).sum(1) for end in ends]
    return float((np.mean(errors, 0) / 2 + lam * z.sum(1)).mean())
