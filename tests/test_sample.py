import numpy as np
import pytest
import torch

from ssae.activation.lanes import sample_rows
from ssae.activation.rows import Rows
from ssae.harvest import harvest, harvest_for
from ssae.retrieve import retrieve_for
from ssae.sample import sample
from ssae.tokenise import tokenise


@pytest.mark.parametrize("packing", ["packed", "documents"])
def test_a_sample_is_some_of_the_rows_unchanged(make_study, tmp_path, packing):
    study = make_study(tmp_path, packing=packing)
    tokenised = tokenise(study, retrieve_for(study, "first"))
    rows, found = Rows(tokenised), Rows(sample(study, tokenised, 300))
    chosen = sample_rows(rows, 300, study.seed)
    assert 300 <= found.num_tokens < 300 + study.context_length
    assert found.num_rows == len(chosen) < rows.num_rows
    assert found.num_documents == rows.num_documents
    for column, expected in zip(found.batch(np.arange(len(chosen))), rows.batch(chosen),
                                strict=True):  # fmt: skip
        same = column is expected if expected is None else torch.equal(column, expected)
        assert same
    batch = rows.batch(chosen)
    counts = torch.bincount(batch.input_ids[batch.text], minlength=len(rows.token_counts))
    assert torch.equal(found.token_counts, counts)
    assert np.array_equal(found.text_tokens, batch.text.sum(1).numpy())
    assert found.artifact.manifest.keys() >= {"num_special", "longest", "special_ids"}
    special = sum(found.lengths) - sum(found.text_tokens)
    assert found.artifact.manifest["num_special"] == special


def test_a_sample_as_large_as_the_text_is_the_text(make_study, tmp_path):
    study = make_study(tmp_path)
    tokenised = tokenise(study, retrieve_for(study, "first"))
    assert sample(study, tokenised, 10**6) == tokenised
    documents = retrieve_for(study, "first")
    assert harvest(study, documents, sample_tokens=10**6) == harvest_for(study, "first")


def test_another_seed_is_another_sample(make_study, tmp_path):
    study = make_study(tmp_path)
    tokenised = tokenise(study, retrieve_for(study, "first"))
    other = make_study(tmp_path, seed=1)
    assert sample(study, tokenised, 300) == sample(study, tokenised, 300)
    assert sample(other, tokenised, 300) != sample(study, tokenised, 300)
