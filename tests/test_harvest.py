import dataclasses

import pytest
import torch
import transformers

from ssae.activation.packing import pack
from ssae.activation.shards import Activations
from ssae.corpus.base import load_splits
from ssae.harvest import harvest, harvest_for, write_shards
from ssae.language_model import LanguageModel


@pytest.mark.parametrize("max_tokens", [None, 123])
def test_harvested_tokens_are_the_hidden_states_of_transformers(make_study, tmp_path, max_tokens):
    study = make_study(tmp_path)
    corpus = study.corpus.build(study.artifacts)
    harvested = harvest(study, corpus, "general_test", max_tokens)
    found = Activations(harvested)
    found = found.slice(0, len(found))
    lm = study.language_model
    plain = transformers.AutoModelForCausalLM.from_pretrained(lm.name).eval()
    texts = load_splits(corpus).general_test["text"]
    expected = []
    for rows in pack(lm.tokenizer, list(texts), 32, "row", 1, max_tokens):
        with torch.no_grad():
            ids = torch.from_numpy(rows.input_ids)
            # hidden_states[0] is the embedding, so [2] leaves block 1.
            x = plain(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
        for position, (token, document) in enumerate(
            zip(rows.input_ids[0].tolist(), rows.document_ids[0].tolist(), strict=True)
        ):
            if token != lm.tokenizer.bos_token_id:
                expected.append((x[position], token, document, position))
    assert max_tokens in (None, len(expected))
    x, token_ids, document_ids, positions = zip(*expected, strict=True)
    torch.testing.assert_close(found.activations, torch.stack(x), rtol=1e-4, atol=1e-5)
    assert found.token_ids.tolist() == list(token_ids)
    assert found.document_ids.tolist() == list(document_ids)
    assert found.positions.tolist() == list(positions)
    assert harvested.manifest["hookpoint"] == "gpt_neox.layers.1"


def test_batch_and_shard_sizes_change_nothing_but_the_files(make_study, tmp_path):
    small = make_study(tmp_path / "small", harvest_batch_tokens=1, shard_tokens=100)
    large = make_study(tmp_path / "large", harvest_batch_tokens=10_000, shard_tokens=10_000)
    found = []
    for study in (small, large):
        activations = Activations(harvest_for(study, "first"))
        found.append(activations.slice(0, len(activations)))
    torch.testing.assert_close(found[0].activations, found[1].activations, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0].document_ids, found[1].document_ids)
    assert torch.equal(found[0].token_ids, found[1].token_ids)


def test_a_context_longer_than_the_model_allows_is_refused(make_study, tmp_path):
    study = make_study(tmp_path, context_length=65)
    with pytest.raises(ValueError, match="longer than the 64 positions.*set context_length=64"):
        harvest_for(study, "first")


def test_documents_without_text_are_refused(make_study, tmp_path):
    study = make_study(tmp_path)
    for texts in ([], ["", ""], ["<|endoftext|>"]):
        with pytest.raises(ValueError, match="hold no token of text"):
            write_shards(study, texts, tmp_path, None)


def test_the_model_as_stored_in_half_precision_is_harvested_in_it(make_study, tmp_path):
    study = make_study(tmp_path)
    half = dataclasses.replace(study.language_model, dtype="bfloat16")
    assert isinstance(half, LanguageModel)
    harvested = harvest_for(dataclasses.replace(study, language_model=half), "first")
    assert harvested.manifest["dtype"] == "bfloat16"
    assert harvested != harvest_for(study, "first")
