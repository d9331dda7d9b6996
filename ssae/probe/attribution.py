"""How much each latent pushes a probe towards the class it is right about.

    m(x)     = - margin of the correct class            (documents i with signs s_i = +-1)
    effect_j = E_i sum_t [ m(x with latent j of token t at 0) - m(x) ]

so that ablating a latent of positive effect lowers the margin. With integrated gradients of K steps
(arXiv 2403.19647; attribution patching is K = 1)

    effect_j = E_i sum_t 1/K sum_k dm/dz_jt |_{z = (1 - k/K) z}  (0 - z_jt),      k = 0 .. K-1

the error node kept: x - recon stays where it is. What has gradients is x, not z: with f = recon -
b_dec and g_t the mean over k of dm/dx_t at x - (k/K) f, dm/dz_jt = g_t . W_dec[j] on the active
set, one sampled product instead of K dense passes through the SAE; the K points are one batch.
Where the probe itself reads, m is linear: one step is exact.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssae.activation.rows import Batch, Rows, batches_of
from ssae.language_model.frozen import LanguageModel
from ssae.language_model.rest import rest_of
from ssae.probe.linear import Linear
from ssae.probe.represent import Site
from ssae.sae.base import SAEOutput

Effects = list[np.ndarray]
"""(d_sae,) float64 of every site."""


def linear_effects(latents: np.ndarray, W_dec: Tensor, probe: Linear, sign: np.ndarray) -> Tensor:
    """Return the effects (d_sae,) of an SAE where the probe reads, exactly.

        effect_j = E_i s_i zbar_ij (W_dec[j] . weight)

    Args:
        latents: (n, d_sae) pooled latents zbar, sparse or dense.
        W_dec: (d_sae, d_in).
        probe: what the margin is of.
        sign: (n,) 1 for documents of class 1, -1 for class 0.
    """
    mean = np.asarray((latents.T @ sign) / len(sign)).ravel()
    return torch.from_numpy(mean) * (W_dec.detach().double().cpu() @ probe.weight)


def integrated_gradients(
    lm: LanguageModel,
    rows: Rows,
    documents: np.ndarray,
    sign: np.ndarray,
    hookpoint: str,
    probe: Linear,
    sites: Sequence[Site],
    num_steps: int,
    batch_tokens: int,
) -> Effects:
    """Return the effects of every site's latents, by gradients at `num_steps` points.

    Args:
        lm: the model.
        rows: of the documents.
        documents: (n,) those that effects are the mean over.
        sign: (n,) 1 for class 1, -1 for class 0.
        hookpoint: where the probe reads.
        probe: what the margin is of.
        sites: SAEs that read there or before.
        num_steps: K; 1 is attribution patching.
        batch_tokens: of a forward pass, the K points together.
    """
    effects = [np.zeros(site.sae.d_sae) for site in sites]
    size = max(1, batch_tokens // num_steps)
    for batch, slope in _margins(lm, rows, documents, sign, probe, size):
        for total, site in zip(effects, sites, strict=True):
            out, x = _encode(lm, batch, site)
            f = out.recon - site.sae.b_dec
            text = batch.text.to(x.device)
            if site.hookpoint == hookpoint:  # m is linear in x
                gradient = slope[batch.text].to(f)
            else:
                steps = torch.arange(num_steps, device=f.device) / num_steps
                points = (x[text] - steps[:, None, None] * f).requires_grad_()
                copies = _repeated(batch, num_steps)
                gradient = _gradient(lm, copies, site, hookpoint, points, x, slope)
            zero = f.new_zeros(site.sae.d_sae)
            active = out.latents.active
            slopes = active.pre_acts(gradient, site.sae.W_dec.detach(), zero)
            total += _per_latent(out, -out.latents.values * slopes)
    return [total / len(documents) for total in effects]


def exact_effects(
    lm: LanguageModel,
    rows: Rows,
    documents: np.ndarray,
    sign: np.ndarray,
    hookpoint: str,
    probe: Linear,
    sites: Sequence[Site],
    batch_tokens: int,
) -> Effects:
    """Return the effects of ablating every latent by itself, at all tokens of a row at once.

    A forward pass for each latent that is active in a row: for small models, and for tests.
    Arguments as in `integrated_gradients`.
    """
    effects = [np.zeros(site.sae.d_sae) for site in sites]
    with torch.no_grad():
        for batch, slope in _margins(lm, rows, documents, sign, probe, 1):  # a row at a time
            weight = slope[0].to(lm.device_used)
            for total, site in zip(effects, sites, strict=True):
                out, x = _encode(lm, batch, site)
                latents = out.latents.to_dense()
                fired = latents.any(0).nonzero()[:, 0]
                clean = (_last(lm, batch, hookpoint)[0] * weight).sum()
                most = max(1, batch_tokens // batch.input_ids.shape[1])
                for some in fired.split(most):
                    points = x.repeat(len(some), 1, 1)
                    parts = latents[:, some].T[:, :, None] * site.sae.W_dec[some, None]
                    points[:, batch.text[0].to(x.device)] -= parts
                    copies = _repeated(batch, len(some))
                    edited = _last(lm, copies, hookpoint, {site.hookpoint: lambda _, p=points: p})
                    changed = (edited * weight).sum((1, 2)) - clean
                    total[some.cpu().numpy()] += changed.double().cpu().numpy()
    return [total / len(documents) for total in effects]


def _margins(
    lm: LanguageModel,
    rows: Rows,
    documents: np.ndarray,
    sign: np.ndarray,
    probe: Linear,
    batch_tokens: int,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of the documents' rows, and dm/dx (num_rows, longest, d_in) where m is linear.

    m is a sum over tokens of x_t . slope_t, so that a document's rows need not be together.
    """
    signs = np.zeros(rows.num_documents)
    signs[documents] = sign
    row_documents = rows.row_documents()
    lengths = np.bincount(row_documents, rows.lengths, minlength=rows.num_documents)
    chosen = np.flatnonzero(np.isin(row_documents, documents))
    for row_ids in batches_of(rows, chosen, batch_tokens):
        batch = rows.batch(row_ids)
        own = row_documents[row_ids]
        per_row = torch.from_numpy(-signs[own] / lengths[own])
        inside = (batch.document_ids >= 0).double()
        slope = torch.einsum("b,bl,d->bld", per_row, inside, probe.weight)
        yield batch, slope.float()


@torch.no_grad()
def _encode(lm: LanguageModel, batch: Batch, site: Site) -> tuple[SAEOutput, Tensor]:
    """Return the SAE's output on the batch's text, and x (num_rows, longest, d_in)."""
    x = lm.capture(batch.input_ids, site.hookpoint, batch.attention_mask)
    return site.sae(x[batch.text.to(x.device)].float()), x


def _gradient(
    lm: LanguageModel,
    copies: Batch,
    site: Site,
    hookpoint: str,
    points: Tensor,
    clean: Tensor,
    slope: Tensor,
) -> Tensor:
    """Return dm/dx (num_text, d_in), the mean over `points` (K, num_text, d_in).

    `clean` (num_rows, longest, d_in) is x: at special tokens it stays.
    """
    whole = clean.repeat(len(points), 1, 1)
    whole[copies.text.to(clean.device)] = points.flatten(0, 1).to(clean)

    def put(_: Tensor) -> Tensor:
        return whole

    with torch.enable_grad(), rest_of(lm, site.hookpoint, hookpoint):
        last = _last(lm, copies, hookpoint, {site.hookpoint: put})
        m = (last.float() * slope.to(last.device).repeat(len(points), 1, 1)).sum()
        [gradient] = torch.autograd.grad(m, points)
    return gradient.mean(0)


def _last(lm: LanguageModel, batch: Batch, hookpoint: str, edits: dict | None = None) -> Tensor:
    return lm.capture_spliced(batch.input_ids, hookpoint, edits or {}, batch.attention_mask)


def _repeated(batch: Batch, times: int) -> Batch:
    """Return the rows of the batch, `times` times over."""
    mask = batch.attention_mask
    return Batch(
        batch.input_ids.repeat(times, 1),
        None if mask is None else mask.repeat(times, 1),
        batch.document_ids.repeat(times, 1),
        batch.text.repeat(times, 1),
    )


def _per_latent(out: SAEOutput, values: Tensor) -> np.ndarray:
    """Return the sums (d_sae,) of `values` (nnz,) over the tokens of each latent."""
    active = out.latents.active
    if active.indices is None:
        return values.view(-1, active.d_sae).double().sum(0).cpu().numpy()
    indices = active.indices.cpu().numpy()
    return np.bincount(indices, values.double().cpu().numpy(), minlength=active.d_sae)
