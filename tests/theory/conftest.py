"""Random tokens, dictionaries and SAEs whose weights are set by hand."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ssae.sae.relu import ReLUSAE
from ssae.sae.sparse import ActiveSet, SparseLatents
from ssae.sae.topk import TopKSAE
from ssae.theory import Coded, coded, optimal_codes

COMMON = {"auxk_coefficient": 0.0, "k_aux": 1}


class Sample(NamedTuple):
    """Tokens, codes and a decoder whose rows are not of norm 1."""

    x: Tensor
    """(n, d_in)."""
    z: Tensor
    """(n, d_sae) >= 0, of the rows of W_dec as they are; optimal for nothing."""
    W_dec: Tensor
    """(d_sae, d_in)."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, z and D as the statements mean them, by hand, and the residual."""
        x, z, W = (part.double().numpy() for part in self)
        norms = np.sqrt((W * W).sum(1))
        return x, z * norms, W / norms[:, None], x - z @ W


class Optimum(NamedTuple):
    """A dictionary that is stationary on its tokens, and their optimal codes."""

    x: Tensor
    z: Tensor
    directions: Tensor
    lam: float

    @property
    def batch(self) -> Coded:
        """As the functions read it."""
        return coded(self.x, self.z, self.directions)


def draw_sample(
    seed: int, n: int = 60, d_in: int = 7, d_sae: int = 10, rate: float = 0.4
) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator, dtype=torch.float64)
    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    z = torch.rand(n, d_sae, generator=generator, dtype=torch.float64)
    return Sample(x, z * (torch.rand(n, d_sae, generator=generator) < rate), W_dec)


def unit_rows(seed: int, num: int, d_in: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, d_in, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows)


def sparse_of(z: Tensor, kept: Tensor | None = None) -> SparseLatents:
    """The entries of z that are > 0, and those of value 0 that `kept` names."""
    where = z > 0 if kept is None else (z > 0) | kept
    tokens, latents = where.nonzero(as_tuple=True)
    return SparseLatents(ActiveSet.of_pairs(tokens, latents, *z.shape), z[tokens, latents])


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return draw_sample


@pytest.fixture
def unit() -> Callable[[int, int, int], Tensor]:
    return unit_rows


@pytest.fixture
def listed() -> Callable[..., SparseLatents]:
    return sparse_of


@pytest.fixture(scope="session")
def optimum() -> Optimum:
    """Block descent: optimal codes, then each direction at its best for them.

    With z fixed the objective is linear in d_j on the sphere: d_j is best along
    sum_i z_ij (r_i + z_ij d_j).
    """
    generator = torch.Generator().manual_seed(3)
    true = unit_rows(4, 6, 5)
    fires = torch.rand(80, 6, generator=generator) < 0.4
    x = (fires * (0.5 + torch.rand(80, 6, generator=generator))).double() @ true
    x += 0.05 * torch.randn(80, 5, generator=generator, dtype=torch.float64)
    lam, D, z = 0.2, unit_rows(5, 5, 5), None
    for _ in range(200):
        z = optimal_codes(x, D, lam, initial=z, tolerance=1e-10).z
        before = D.clone()
        for j in range(len(D)):
            if z[:, j].any():
                own = z[:, j] @ (x - z @ D + z[:, j, None] * D[j])
                D[j] = own / own.norm()
        if (D - before).abs().max() < 1e-9:
            break
    return Optimum(x, optimal_codes(x, D, lam, tolerance=1e-11).z, D, lam)


@pytest.fixture
def relu_sae() -> Callable[..., ReLUSAE]:
    """An SAE that reads along its directions: latents = relu(x . W_enc_j + b_enc_j)."""

    def make(
        W_dec: Tensor,
        b_enc: float | Tensor = 0.0,
        *,
        W_enc: Tensor | None = None,
        b_dec: float | Tensor = 0.0,
        l1_coefficient: float = 1.0,
    ) -> ReLUSAE:
        d_sae, d_in = W_dec.shape
        sae = ReLUSAE(d_in, d_sae, l1_coefficient=l1_coefficient, **COMMON).double()
        _set(sae, W_dec, W_dec if W_enc is None else W_enc, b_enc, b_dec)
        return sae

    return make


@pytest.fixture
def topk_sae() -> Callable[..., TopKSAE]:
    def make(W_dec: Tensor, k: int, *, b_dec: float | Tensor = 0.0) -> TopKSAE:
        d_sae, d_in = W_dec.shape
        sae = TopKSAE(d_in, d_sae, k=k, **COMMON).double()
        _set(sae, W_dec, W_dec, 0.0, b_dec)
        return sae

    return make


@torch.no_grad()
def _set(sae: ReLUSAE | TopKSAE, W_dec: Tensor, W_enc_T: Tensor, b_enc, b_dec) -> None:
    sae.W_dec.copy_(W_dec)
    sae.W_enc_T.copy_(W_enc_T)
    sae.b_enc.copy_(torch.as_tensor(b_enc).expand_as(sae.b_enc))
    sae.b_dec.copy_(torch.as_tensor(b_dec).expand_as(sae.b_dec))
