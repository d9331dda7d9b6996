"""General text that is mixed into what an arm learns from."""

import dataclasses

import datasets
import numpy as np
import pytest

from ssae.activation.rows import Rows
from ssae.harvest import harvest_for
from ssae.mix import documents_for
from ssae.retrieve import retrieve_for
from ssae.study import Study
from ssae.tokenise import tokenise


def with_share(study: Study, share: float) -> Study:
    arm = dataclasses.replace(study.arms["second"], general_share=share)
    return dataclasses.replace(study, arms=study.arms | {"second": arm})


def test_without_a_share_an_arm_learns_from_what_was_retrieved(make_study, tmp_path):
    study = make_study(tmp_path)
    assert documents_for(study, "second").path == retrieve_for(study, "second").path
    assert not (tmp_path / "artifacts" / "mix").exists()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_share_is_that_of_general_tokens_and_no_document_is_taken_twice(
    make_study, tmp_path, share
):
    study = with_share(make_study(tmp_path), share)
    retrieved, mixed = retrieve_for(study, "second"), documents_for(study, "second")
    found = datasets.Dataset.load_from_disk(mixed.path / "documents")
    first = datasets.Dataset.load_from_disk(retrieved.path / "documents")
    assert found.select(range(len(first))).to_list() == first.to_list()
    assert len(set(found["document"][:])) == len(found)
    tokens = np.array(found["num_tokens"][:])
    general = tokens[len(first) :]
    # Whole documents, some of which were retrieved already: it may miss by those.
    drawn = mixed.manifest
    assert drawn["num_general_tokens"] == general.sum()
    assert drawn["num_general_documents"] == len(found) - len(first)
    assert drawn["num_tokens"] == tokens.sum()
    wanted = share / (1 - share) * tokens[: len(first)].sum()
    assert 0 < general.sum() <= wanted + tokens.max()
    rows = Rows(tokenise(study, mixed))
    assert harvest_for(study, "second").manifest["num_tokens"] == rows.num_tokens == tokens.sum()
    assert rows.document_counts().tolist() == tokens.tolist()
    assert rows.document_counts().sum() == rows.token_counts.sum()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_of_its_bounds_is_refused(make_study, tmp_path, share):
    with pytest.raises(ValueError, match=r"general_share must lie in \[0, 1\), got .*=0.4"):
        with_share(make_study(tmp_path), share)
