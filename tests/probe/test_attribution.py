import numpy as np
import pytest
import torch

from ssae.probe.attribution import exact_effects, integrated_gradients, linear_effects
from ssae.probe.represent import Site
from tests.probe.conftest import PROBED, planted, text_rows

EARLIER = ["gpt_neox.layers.0", "gpt_neox.layers.1"]


def margins(case, edit_at=None, fn=None, probed=PROBED):
    """m(x) of each document, and of one with an edited activation at a hookpoint."""
    found = []
    for document, sign in zip(case.documents.tolist(), case.sign.tolist(), strict=True):
        parts = []
        for batch in text_rows(case.rows, document):
            edits = {} if edit_at is None else {edit_at: lambda x, b=batch: fn(x, b)}
            parts.append(case.lm.capture_spliced(batch.input_ids, probed, edits)[0].double())
        mean = torch.cat(parts).mean(0)
        found.append(-sign * (mean @ case.probe.weight + case.probe.bias))
    return torch.stack(found)


def ablating(sae, latent):
    """decode(latents without one) + error, at the tokens of text."""

    def fn(x, batch):
        x = x.clone()
        own = x[0, batch.text[0]]
        latents = sae.encode(own)
        error = own - sae.decode(latents)
        latents[:, latent] = 0
        x[0, batch.text[0]] = sae.decode(latents) + error
        return x

    return fn


@torch.no_grad()
def brute_force(case, site, probed=PROBED):
    clean = margins(case, probed=probed)
    return np.array(
        [
            float((margins(case, site.hookpoint, ablating(site.sae, j), probed) - clean).mean())
            for j in range(site.sae.d_sae)
        ]
    )


def dense_gradients(case, site, num_steps):
    """Integrated gradients with every latent a leaf, one point after the other."""
    total = np.zeros(site.sae.d_sae)
    for document, sign in zip(case.documents.tolist(), case.sign.tolist(), strict=True):
        batches = text_rows(case.rows, document)
        count = sum(batch.input_ids.numel() for batch in batches)
        for batch in batches:
            with torch.no_grad():
                x = case.lm.capture(batch.input_ids, site.hookpoint)
                own = x[0, batch.text[0]]
                latents = site.sae.encode(own)
                error = own - site.sae.decode(latents)
            for step in range(num_steps):
                z = ((1 - step / num_steps) * latents).requires_grad_()

                def put(_, z=z, x=x, batch=batch, error=error):
                    made = x.clone()
                    made[0, batch.text[0]] = site.sae.decode(z) + error
                    return made

                last = case.lm.capture_spliced(batch.input_ids, PROBED, {site.hookpoint: put})
                m = -sign * (last[0].double().sum(0) / count) @ case.probe.weight
                [gradient] = torch.autograd.grad(m, z)
                total += (-latents * gradient).sum(0).detach().numpy() / num_steps
    return total / len(case.documents)


def arguments(case, site):
    return (case.lm, case.rows, case.documents, case.sign, PROBED, case.probe, [site])


@pytest.mark.parametrize("hookpoint", [*EARLIER, PROBED])
def test_exact_effects_are_what_ablating_one_by_one_gives(case, hookpoint):
    site = Site(hookpoint, planted())
    [found] = exact_effects(*arguments(case, site), batch_tokens=100)
    expected = brute_force(case, site)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 5])
@pytest.mark.parametrize("hookpoint", EARLIER)
def test_integrated_gradients_are_those_with_every_latent_a_leaf(case, hookpoint, num_steps):
    site = Site(hookpoint, planted())
    [found] = integrated_gradients(*arguments(case, site), num_steps, batch_tokens=200)
    expected = dense_gradients(case, site, num_steps)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_effects_of_all_latents_add_up_to_ablating_them_all(case):
    """Completeness of integrated gradients: the path ends where every latent is 0."""
    site = Site(EARLIER[1], planted())
    [found] = integrated_gradients(*arguments(case, site), 200, batch_tokens=2000)

    def silent(x, batch):
        x = x.clone()
        own = x[0, batch.text[0]]
        x[0, batch.text[0]] = own - site.sae.decode(site.sae.encode(own)) + site.sae.b_dec
        return x

    with torch.no_grad():
        change = (margins(case, site.hookpoint, silent) - margins(case)).mean()
    assert found.sum() == pytest.approx(float(change), rel=0.03)


def test_where_the_probe_reads_one_step_and_the_closed_form_are_exact(case):
    site = Site(PROBED, planted())
    [gradients] = integrated_gradients(*arguments(case, site), 1, batch_tokens=200)
    expected = brute_force(case, site)
    np.testing.assert_allclose(gradients, expected, rtol=1e-3, atol=1e-5)
    pooled = np.zeros((len(case.documents), 24))
    for place, document in enumerate(case.documents.tolist()):
        batches = text_rows(case.rows, document)
        for batch in batches:
            own = case.lm.capture(batch.input_ids, PROBED)[0][batch.text[0]]
            pooled[place] += site.sae.encode(own).sum(0).detach().numpy()
        pooled[place] /= sum(batch.input_ids.numel() for batch in batches)
    closed = linear_effects(pooled, site.sae.W_dec, case.probe, case.sign)
    np.testing.assert_allclose(closed.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_several_saes_are_attributed_each_by_itself(case):
    sites = [Site(EARLIER[0], planted(0)), Site(EARLIER[1], planted(1)), Site(PROBED, planted(2))]
    first = arguments(case, sites[0])[:-1]
    together = integrated_gradients(*first, sites, 3, batch_tokens=300)
    for site, found in zip(sites, together, strict=True):
        [alone] = integrated_gradients(*first, [site], 3, batch_tokens=300)
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-7)


def test_the_size_of_a_batch_changes_nothing_but_rounding(case):
    site = Site(EARLIER[0], planted())
    [small], [large] = (
        integrated_gradients(*arguments(case, site), 4, batch_tokens=size) for size in (1, 5000)
    )
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-7)


def test_an_encoder_is_attributed_too(bert, rows_of, texts, case):
    own = case._replace(lm=bert, rows=rows_of(texts, language_model=bert, context_length=20))
    site, probed = Site("encoder.layer.0", planted()), "encoder.layer.2"
    shared = (bert, own.rows, own.documents, own.sign, probed, own.probe, [site])
    [exact] = exact_effects(*shared, batch_tokens=400)
    np.testing.assert_allclose(exact, brute_force(own, site, probed), rtol=1e-3, atol=1e-5)
