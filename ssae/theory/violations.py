"""Whether a dictionary is stationary: where each latent's mean residual points.

Of problem P (coded.py) let E_j be the mean over tokens with weights z_ij, r_i = x_i - z_i @ D.
Moving d_j on the unit sphere changes the objective by -sum_i z_ij r_i . delta, so at a local
optimum sum_i z_ij r_i is parallel to d_j; the KKT conditions of the codes (d_j . r_i = lam wherever
z_ij > 0) give its length:

    E_j[r] = lam d_j
    violation_j = ||E_j[r] - lam d_j|| / lam               with a penalty
    violation_j = ||E_j[r]|| / E||r||                      without (TopK: lam = 0)
    tangent_j   = ||E_j[r] - (d_j . E_j[r]) d_j|| / E||r||  the part that a turn of d_j removes

E_j[r] of a rare latent is a mean of few tokens, which is long by chance alone. With s_uj = sum of
z_ij r_i and m_uj = sum of z_ij over the tokens i of a unit u, its squared error is

    noise_j^2 = sum_u ||s_uj - m_uj E_j[r]||^2 / (sum_u m_uj)^2 * m / (m - 1)
    m         = (sum_u m_uj)^2 / sum_u m_uj^2              units that count
    excess_j  = sqrt(violation_j^2 - noise_j^2), 0 where that is negative

and likewise for the tangent, with the noise of d_j . E_j[r] taken off that of E_j[r] first (the
noise of a ratio of sums, to first order in 1/m). Units are documents where they are given:
tokens of one document are alike, and a rare latent fires on few documents. Else they are tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssae.sae.products import weighted_rows
from ssae.sae.sparse import SparseLatents
from ssae.theory.coded import Coded, check_lam, coded

CHUNK_BYTES = 2**26
"""Sums of documents held at a time."""


class Stationarity(NamedTuple):
    """How far each latent is from stationary; NaN for latents that never fire."""

    lam: float
    """Price of a unit of z; 0 for SAEs without a penalty."""
    violation: Tensor
    """(d_sae,) see above."""
    excess: Tensor
    """(d_sae,) what is left of it without the noise of few tokens or documents."""
    noise: Tensor
    """(d_sae,) that noise, in the same unit; NaN where one token or document alone counts."""
    tangent: Tensor
    """(d_sae,) the part a turn of the direction removes, over E||r|| for every SAE."""
    tangent_excess: Tensor
    """(d_sae,) what is left of that without its noise; compares SAEs with a penalty and without."""
    length: Tensor
    """(d_sae,) d_j . E_j[r]: lam at the optimum."""
    mean_residual: Tensor
    """(d_sae, d_in) E_j[r]."""
    fires: Tensor
    """(d_sae,) tokens on which each latent fires, int64."""
    residual_norm: float
    """E||r||."""


class Violations:
    """Gathers what `Stationarity` is computed from, batch by batch, in float64.

    Keeps 16 d_sae d_in bytes; nothing is of size (n, d_sae).

    Args:
        directions: (d_sae, d_in) of norm 1.

    Example:
        >>> x, z = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]])
        >>> found = Violations(torch.eye(2, dtype=torch.float64))
        >>> found.update(coded(x, z, torch.eye(2)))
        >>> found.result(lam=1.0).violation
        tensor([0., nan], dtype=torch.float64)
    """

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions
        d_sae = len(directions)
        self.rows = torch.zeros_like(directions)  # sum_i w_i z_ij r_i
        self.square_rows = torch.zeros_like(directions)  # sum_u m_uj s_uj
        # Sums of w z and 1[z > 0] over tokens; of m_uj^2, ||s_uj||^2 and (d_j . s_uj)^2 over units.
        self.columns = directions.new_zeros(5, d_sae)
        self.norms = directions.new_zeros(2)  # sums of w ||r|| and w

    def update(
        self, batch: Coded, weights: Tensor | None = None, documents: Tensor | None = None
    ) -> None:
        """Add tokens with their codes.

        Args:
            batch: n tokens.
            weights: (n,) >= 0, of the tokens in the risk whose optimum is asked for; None: equal.
            documents: (n,) numbers of their documents; one in two batches counts as two. None:
                every token is a unit of its own.
        """
        n = len(batch.x)
        w = batch.x.new_ones(n) if weights is None else weights.detach().to(batch.x)
        if w.shape != (n,) or not (w >= 0).all() or w.isinf().any():
            raise ValueError(
                f"weights must be {n} finite numbers of at least 0, got {tuple(w.shape)}"
            )
        if documents is not None and documents.shape != (n,):
            raise ValueError(f"documents must be {n} numbers, got {tuple(documents.shape)}")
        tokens = batch.z.active.tokens
        values, r = w[tokens] * batch.z.values, batch.residual
        self.rows += batch.sums_per_latent(values, r)
        self.columns[0] += batch.masses(values)
        self.columns[1] += batch.masses(torch.ones_like(values))
        norms = r.norm(dim=1)
        self.norms += torch.stack([(w * norms).sum(), w.sum()])
        if documents is None:
            squares = values.square()
            self.square_rows += batch.sums_per_latent(squares, r)
            self.columns[2] += batch.masses(squares)
            self.columns[3] += batch.masses(squares * norms[tokens].square())
            self.columns[4] += batch.masses(squares * batch.projections().square())
        else:
            self._add_documents(batch, values, documents.to(tokens.device).long())

    def _add_documents(self, batch: Coded, values: Tensor, documents: Tensor) -> None:
        """Add s_uj and m_uj of the documents of a batch."""
        active = batch.z.active
        assert active.indices is not None
        documents = documents.unique(return_inverse=True)[1]
        count = int(documents.max()) + 1
        keys = active.indices.long() * count + documents[active.tokens]
        keys, order = keys.sort(stable=True)
        units, sizes = keys.unique_consecutive(return_counts=True)
        latents, ends = units // count, sizes.cumsum(0)
        tokens, values = active.tokens[order], values[order]
        piece = max(1, CHUNK_BYTES // (8 * batch.x.shape[1]))
        for start in range(0, len(units), piece):
            stop = min(start + piece, len(units))
            first = int(ends[start] - sizes[start])
            inside = slice(first, int(ends[stop - 1]))
            offsets = nn.functional.pad(ends[start:stop] - first, (1, 0))
            own, weights = latents[start:stop], values[inside]
            sums = weighted_rows(batch.residual, tokens[inside], offsets, weights)
            masses = torch.segment_reduce(weights, "sum", offsets=offsets)
            self.square_rows.index_add_(0, own, masses[:, None] * sums)
            self.columns[2].index_add_(0, own, masses.square())
            self.columns[3].index_add_(0, own, sums.square().sum(1))
            along = (sums * batch.directions[own]).sum(1)
            self.columns[4].index_add_(0, own, along.square())

    def result(self, lam: float) -> Stationarity:
        """Return what the tokens say, for a price `lam` of z."""
        lam = check_lam(lam)
        mass, fires, squares, lengths_sq, alongs_sq = self.columns
        mean = self.rows / torch.where(mass > 0, mass, torch.nan)[:, None]
        residual_norm = float(self.norms[0] / self.norms[1])
        length = (mean * self.directions).sum(1)
        # Without a residual there is nothing that could violate.
        floor = max(residual_norm, 1e-300)
        scale = lam if lam > 0 else floor
        # m / (m - 1), of sums that are squared.
        lonely = 1 - squares / mass.square()
        factor = 1 / mass.square() / torch.where(lonely > 1e-9, lonely, torch.nan)
        spread = lengths_sq - 2 * (mean * self.square_rows).sum(1)
        noise_sq = factor * (spread + mean.square().sum(1) * squares).clamp_min(0)
        spread = alongs_sq - 2 * length * (self.directions * self.square_rows).sum(1)
        along_sq = factor * (spread + length.square() * squares).clamp_min(0)
        violation_sq = (mean - lam * self.directions).square().sum(1)
        tangent_sq = (mean - length[:, None] * self.directions).square().sum(1)
        tangent_left = tangent_sq - (noise_sq - along_sq).clamp_min(0)
        return Stationarity(
            lam=lam,
            violation=violation_sq.sqrt() / scale,
            excess=(violation_sq - noise_sq).clamp_min(0).sqrt() / scale,
            noise=noise_sq.sqrt() / scale,
            tangent=tangent_sq.sqrt() / floor,
            tangent_excess=tangent_left.clamp_min(0).sqrt() / floor,
            length=length,
            mean_residual=mean,
            fires=fires.long(),
            residual_norm=residual_norm,
        )


def stationarity(
    x: Tensor,
    z: Tensor | SparseLatents,
    W_dec: Tensor,
    lam: float,
    weights: Tensor | None = None,
    documents: Tensor | None = None,
) -> Stationarity:
    """Return how far each decoder direction is from stationary on x; see the module.

    Args:
        x: (n, d_in), less b_dec.
        z: (n, d_sae) codes.
        W_dec: (d_sae, d_in).
        lam: price of a unit of z; 0 for TopK and others without a penalty.
        weights: (n,) of tokens, for optima of a weighted risk (TERM's weights); None: equal.
        documents: (n,) numbers of their documents, the units of the noise; None: tokens are.

    Raises:
        ValueError: a shape is wrong, or a value is not finite or, in z, negative.
    """
    batch = coded(x, z, W_dec)
    gathered = Violations(batch.directions)
    gathered.update(batch, weights, documents)
    return gathered.result(lam)
