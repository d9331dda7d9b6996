import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from ssae.probe.dictionary import Dictionary, Key, narrowed
from ssae.probe.represent import Site, represent
from ssae.probe.stored import represent_all
from ssae.sae.files import save
from ssae.sae.matryoshka import MatryoshkaSAE
from tests.probe.conftest import PROBED, planted, text_rows

KEY = Key("second", 1, 0)


@pytest.fixture
def dictionary(case, make_study, tmp_path: Path):
    """Return a function that makes the dictionary of SAEs at some hookpoints."""

    def make(*hookpoints: str) -> Dictionary:
        saes = {}
        for seed, hookpoint in enumerate(hookpoints):
            save(planted(seed), tmp_path / f"sae{seed}")
            saes[tmp_path / f"sae{seed}"] = hookpoint
        _, latents = represent_all(make_study(tmp_path), case.rows, PROBED, saes)
        sites = [Site(at, planted(seed)) for seed, at in enumerate(hookpoints)]
        joined = sparse.csr_array(sparse.hstack(list(latents.values())))
        return Dictionary(KEY, PROBED, sites, joined, *[np.full(24 * len(hookpoints), 0.5)] * 2)

    return make


@torch.no_grad()
def by_hand(case, sites, chosen):
    """decode(latents without the chosen) + error at every site, a row at a time."""
    found = []
    for document in range(case.rows.num_documents):
        parts = []
        for batch in text_rows(case.rows, document):

            def edit(x, site=None, latents=None, batch=batch):
                x = x.clone()
                own = x[0, batch.text[0]]
                z = site.sae.encode(own)
                error = own - site.sae.decode(z)
                z[:, latents] = 0
                x[0, batch.text[0]] = site.sae.decode(z) + error
                return x

            edits = {
                site.hookpoint: functools.partial(edit, site=site, latents=latents)
                for site, latents in zip(sites, chosen, strict=True)
            }
            parts.append(case.lm.capture_spliced(batch.input_ids, PROBED, edits)[0])
        found.append(torch.cat(parts).mean(0))
    return torch.stack(found)


def test_ablating_where_the_probe_reads_needs_no_model(case, dictionary, monkeypatch):
    made = dictionary(PROBED)
    x = represent(case.lm, case.rows, PROBED, 100)
    latents = np.array([1, 5, 6, 20])
    expected = by_hand(case, made.sites, [latents])
    monkeypatch.setattr(type(case.lm), "capture_spliced", None)
    found = made.ablate(case.lm, case.rows, x, latents, 100)
    assert (found - x).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ablating_in_several_layers_runs_the_model_once_with_all_of_them(case, dictionary):
    made = dictionary("gpt_neox.layers.0", "gpt_neox.layers.1", PROBED)
    x = represent(case.lm, case.rows, PROBED, 100)
    latents = np.array([2, 7, 24 + 3, 48 + 1, 48 + 9])
    found = made.ablate(case.lm, case.rows, x, latents, 100)
    expected = by_hand(case, made.sites, made.places(latents))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_saes_that_lose_a_latent_run(case, dictionary, monkeypatch):
    made = dictionary("gpt_neox.layers.0", "gpt_neox.layers.1")
    ran = []
    for site in made.sites:
        site.sae.register_forward_hook(lambda *_, at=site.hookpoint: ran.append(at))
    made.ablate(case.lm, case.rows, torch.zeros(0), np.array([24 + 3]), 10_000)
    assert set(ran) == {"gpt_neox.layers.1"}


def test_without_latents_nothing_changes(case, dictionary):
    x = represent(case.lm, case.rows, PROBED, 100)
    empty = np.array([], dtype=np.int64)
    assert dictionary("gpt_neox.layers.0").ablate(case.lm, case.rows, x, empty, 100) is x


def test_latents_are_numbered_through_all_sites(dictionary):
    made = dictionary("gpt_neox.layers.0", PROBED)
    first, second = made.places(np.array([23, 24, 0, 47]))
    assert first.tolist() == [23, 0]
    assert second.tolist() == [0, 23]


def test_a_narrow_study_has_a_share_of_the_latents(make_study, tmp_path: Path):
    study = make_study(tmp_path)
    made = narrowed(study, Key("second", 0.25, 7), "gpt_neox.layers.0")
    assert made.sae.keywords["d_sae"] == 16
    assert made.seed == 7
    assert made.hookpoint == "gpt_neox.layers.0"
    assert narrowed(study, Key("second", 0.01, 0), PROBED).sae.keywords["d_sae"] == 4  # k


def test_groups_of_a_narrow_matryoshka_still_sum_to_its_width(make_study, tmp_path: Path):
    sae = functools.partial(
        MatryoshkaSAE, d_sae=60, k=4, group_sizes=[7, 13, 40], auxk_coefficient=0.0, k_aux=2
    )
    made = narrowed(make_study(tmp_path, sae=sae), Key("second", 0.3, 0), PROBED)
    assert sum(made.sae.keywords["group_sizes"]) == made.sae.keywords["d_sae"] == 18


def test_init_from_may_name_a_folder_of_saes_by_hookpoint(make_study, tmp_path: Path):
    study = make_study(tmp_path)
    first = dataclasses.replace(study.arms["first"], init_from="saes/{hookpoint}", num_tokens=0)
    study = dataclasses.replace(study, arms={**study.arms, "first": first})
    made = narrowed(study, Key("first", 1, 0), PROBED)
    assert made.arms["first"].init_from == f"saes/{PROBED}"
    for arm in ("first", "second"):  # the second starts from the first
        with pytest.raises(ValueError, match=r"cannot be trained at 0.5 .*set shift.widths=\[1\]"):
            narrowed(study, Key(arm, 0.5, 0), PROBED)
