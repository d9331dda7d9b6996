from pathlib import Path

import numpy as np
import pytest
import torch

from ssae.probe.represent import pooled, represent
from ssae.probe.stored import represent_all
from ssae.sae.files import load, save
from tests.probe.conftest import PROBED, planted, text_rows


@pytest.mark.parametrize("model", ["neox", "llama", "bert"])
def test_left_and_right_padding_give_the_same_vectors(model, request):
    lm = request.getfixturevalue(model)
    hookpoint = lm.resolve("auto")
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 7, 5]
    texts = [torch.randint(5, 290, (length,), generator=generator) for length in lengths]
    left, right = torch.full((3, 7), 4), torch.full((3, 7), 4)
    masks = torch.zeros(2, 3, 7, dtype=torch.int64)
    for row, ids in enumerate(texts):
        left[row, 7 - len(ids) :], right[row, : len(ids)] = ids, ids
        masks[0, row, 7 - len(ids) :] = masks[1, row, : len(ids)] = 1
    alone = [lm.capture(ids[None], hookpoint)[0].mean(0) for ids in texts]
    for ids, mask in zip((left, right), masks, strict=True):
        found = pooled(lm, ids, mask, hookpoint)
        torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_a_row_of_padding_only_is_refused(neox):
    with pytest.raises(ValueError, match="every row must hold a token"):
        pooled(
            neox, torch.ones(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [0, 0, 0]]), PROBED
        )


def test_a_document_is_the_mean_over_all_tokens_of_all_its_rows(case):
    found = represent(case.lm, case.rows, PROBED, batch_tokens=30)
    assert case.rows.num_rows > case.rows.num_documents  # some are longer than a row
    for document in range(case.rows.num_documents):
        parts = [case.lm.capture(b.input_ids, PROBED)[0] for b in text_rows(case.rows, document)]
        torch.testing.assert_close(found[document], torch.cat(parts).mean(0), rtol=1e-4, atol=1e-5)


def test_the_size_of_a_batch_changes_nothing_but_rounding(case):
    one, all_at_once = (represent(case.lm, case.rows, PROBED, size) for size in (1, 10_000))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


def test_pooled_latents_are_means_over_text_divided_by_all_tokens(case, make_study, tmp_path: Path):
    saes = {}
    for seed, hookpoint in enumerate(("gpt_neox.layers.0", PROBED)):
        save(planted(seed), tmp_path / f"sae{seed}")
        saes[tmp_path / f"sae{seed}"] = hookpoint
    study = make_study(tmp_path)
    x, latents = represent_all(study, case.rows, PROBED, saes)
    torch.testing.assert_close(x, represent(case.lm, case.rows, PROBED, 100), rtol=1e-4, atol=1e-5)
    for path, hookpoint in saes.items():
        sae = load(path)
        for document in range(case.rows.num_documents):
            total, count = torch.zeros(24), 0
            for batch in text_rows(case.rows, document):
                own = case.lm.capture(batch.input_ids, hookpoint)[0][batch.text[0]]
                total += sae.encode(own).sum(0).detach()
                count += batch.input_ids.numel()
            expected = (total / count).numpy()
            np.testing.assert_allclose(
                latents[path][[document]].toarray()[0], expected, rtol=1e-4, atol=1e-5
            )


def test_what_was_read_before_is_not_read_again(case, make_study, tmp_path: Path, monkeypatch):
    save(planted(), tmp_path / "sae")
    study = make_study(tmp_path)
    saes = {tmp_path / "sae": PROBED}
    first = represent_all(study, case.rows, PROBED, saes)
    monkeypatch.setattr(type(case.lm), "capture_all", None)
    again = represent_all(study, case.rows, PROBED, saes)
    assert torch.equal(first[0], again[0])
    assert (first[1][tmp_path / "sae"] != again[1][tmp_path / "sae"]).nnz == 0


def test_one_pass_makes_only_what_is_missing(case, make_study, tmp_path: Path):
    for seed in (0, 1):
        save(planted(seed), tmp_path / f"sae{seed}")
    study = make_study(tmp_path)
    read = [tmp_path / "sae0", tmp_path / "sae1"]
    represent_all(study, case.rows, PROBED, {read[0]: PROBED})
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/represent").iterdir()}
    _, both = represent_all(study, case.rows, PROBED, dict.fromkeys(read, PROBED))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "artifacts/represent").iterdir()}
    assert len(after) == len(before) + 1
    assert {name: after[name] for name in before} == before
    alone = represent_all(make_study(tmp_path / "other"), case.rows, PROBED, {read[1]: PROBED})
    np.testing.assert_allclose(
        both[read[1]].toarray(), alone[1][read[1]].toarray(), rtol=1e-5, atol=1e-7
    )


def test_edits_are_given_the_batch_they_edit(case):
    def only_text(x, batch):
        return torch.where(batch.text[:, :, None], x * 0, x)

    found = represent(case.lm, case.rows, PROBED, 100, {PROBED: only_text})
    for document in range(case.rows.num_documents):
        parts = []
        for batch in text_rows(case.rows, document):
            x = case.lm.capture(batch.input_ids, PROBED)[0].clone()
            x[batch.text[0]] = 0
            parts.append(x)
        torch.testing.assert_close(found[document], torch.cat(parts).mean(0), rtol=1e-4, atol=1e-5)
