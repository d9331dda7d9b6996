import dataclasses
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.activation.shards import Tokens
from ssae.activation.writer import ShardWriter
from ssae.artifact.store import Artifact
from ssae.corpus.base import load_split
from ssae.harvest import check_model, harvest, harvest_all, harvest_for
from ssae.language_model.frozen import LanguageModel
from ssae.read_pool import read_corpus
from ssae.study import Study
from ssae.tokenise import tokenise

REPOSITORY = Path(__file__).parents[1]


def everything(artifact: Artifact) -> Tokens:
    activations = Activations(artifact)
    return activations.slice(0, len(activations))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hidden_states(study: Study, input_ids: list[int]) -> torch.Tensor:
    """What transformers gives at block 1 for one row alone."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(study.language_model.name).eval()
    with torch.no_grad():
        # hidden_states[0] is the embedding, so [2] leaves block 1.
        return plain(torch.tensor([input_ids]), output_hidden_states=True).hidden_states[2][0]


def compare_with_transformers(
    study: Study, found: Tokens, rows: list[list[int]], documents: list[list[int]]
) -> None:
    expected = []
    for ids, row_documents in zip(rows, documents, strict=True):
        x = hidden_states(study, ids)
        for position, (token, document) in enumerate(zip(ids, row_documents, strict=True)):
            if token != study.language_model.tokenizer.bos_token_id:
                expected.append((x[position], token, document, position))
    x, token_ids, document_ids, positions = zip(*expected, strict=True)
    torch.testing.assert_close(found.activations, torch.stack(x), rtol=1e-4, atol=1e-5)
    assert found.token_ids.tolist() == list(token_ids)
    assert found.document_ids.tolist() == list(document_ids)
    assert found.positions.tolist() == list(positions)


@pytest.mark.parametrize("max_tokens", [None, 123])
def test_packed_tokens_are_the_hidden_states_of_transformers(make_study, tmp_path, max_tokens):
    study = make_study(tmp_path, shard_tokens=100)
    corpus = read_corpus(study)
    harvested = harvest(study, corpus, "general_test", max_tokens)
    rows = Rows(tokenise(study, corpus, "general_test", max_tokens))
    batches = [rows.batch([number]) for number in range(len(rows))]
    found = everything(harvested)
    assert max_tokens in (None, len(found.token_ids))
    compare_with_transformers(
        study,
        found,
        [batch.input_ids[0].tolist() for batch in batches],
        [batch.document_ids[0].tolist() for batch in batches],
    )
    assert harvested.manifest["hookpoint"] == "gpt_neox.layers.1"


def test_documents_alone_are_the_hidden_states_of_transformers(make_study, tmp_path):
    study = make_study(tmp_path, packing="documents", shard_tokens=100, harvest_batch_tokens=200)
    corpus = read_corpus(study)
    lm, rows, documents = study.language_model, [], []
    for document, text in enumerate(load_split(corpus, "general_test")["text"]):
        ids = lm.tokenizer(text)["input_ids"]
        for start in range(0, len(ids), study.context_length - 1):
            row = [lm.tokenizer.bos_token_id, *ids[start : start + study.context_length - 1]]
            rows.append(row)
            documents.append([document] * len(row))
    assert len({len(row) for row in rows}) > 3
    found = everything(harvest(study, corpus, "general_test"))
    compare_with_transformers(study, found, rows, documents)


def test_batch_and_shard_sizes_change_nothing_but_the_files(make_study, tmp_path):
    small = make_study(tmp_path / "small", harvest_batch_tokens=1, shard_tokens=100)
    large = make_study(tmp_path / "large", harvest_batch_tokens=10_000, shard_tokens=10_000)
    one, other = (harvest_for(study, "first") for study in (small, large))
    assert len(other.manifest["shard_sizes"]) == 1
    sizes = one.manifest["shard_sizes"]
    assert sum(sizes) == other.manifest["num_tokens"]
    assert all(abs(size - 100) < small.context_length for size in sizes[:-1])
    found = [everything(artifact) for artifact in (one, other)]
    torch.testing.assert_close(found[0].activations, found[1].activations, rtol=1e-4, atol=1e-5)
    for column in ("document_ids", "token_ids", "positions"):
        assert torch.equal(getattr(found[0], column), getattr(found[1], column))


def test_a_row_longer_than_a_shard_is_a_shard(make_study, tmp_path):
    study = make_study(tmp_path, shard_tokens=5)
    corpus = read_corpus(study)
    harvested = harvest(study, corpus, "general_test", 100)
    rows = Rows(tokenise(study, corpus, "general_test", 100))
    assert harvested.manifest["shard_sizes"] == rows.text_tokens.tolist()
    assert len(everything(harvested).token_ids) == 100


def test_statistics_are_those_of_the_stored_activations(make_study, tmp_path):
    activations = Activations(harvest_for(make_study(tmp_path, shard_tokens=100), "first"))
    tokens = activations.slice(0, len(activations))
    x = tokens.activations.double()
    torch.testing.assert_close(activations.mean, x.mean(0), rtol=1e-12, atol=1e-14)
    variance = float((x - x.mean(0)).square().sum(1).mean())
    assert activations.variance == pytest.approx(variance, rel=1e-12)
    assert activations.mean_norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-12)
    assert torch.equal(activations.token_counts, torch.bincount(tokens.token_ids, minlength=300))


def test_hookpoints_of_one_pass_are_those_of_passes_of_their_own(make_study, tmp_path):
    names = ["gpt_neox.layers.1", "gpt_neox.layers.0.attention", "gpt_neox.layers.2.mlp"]
    together = make_study(tmp_path / "together", hookpoints=[*names[1:], names[0]])
    corpus = read_corpus(together)
    found = harvest_all(together, corpus, check_model(together), "general_test")
    assert list(found) == names
    assert harvest(together, corpus, "general_test") == found[names[0]]
    for name in names:
        study = make_study(tmp_path / "alone", hookpoint=name)
        alone = harvest(study, read_corpus(study), "general_test")
        assert alone.hash == found[name].hash
        assert alone.manifest["hookpoint"] == name
        assert contents(alone.path) == contents(found[name].path)
    assert len({artifact.hash for artifact in found.values()}) == 3


def test_a_hookpoint_that_is_there_is_not_made_again(make_study, tmp_path, caplog):
    study = make_study(tmp_path)
    corpus = read_corpus(study)
    first = harvest(study, corpus, "general_test")
    before = contents(first.path)
    more = dataclasses.replace(study, hookpoints=["gpt_neox.layers.0"])
    with caplog.at_level(logging.INFO):
        both = harvest_all(more, corpus, check_model(more), "general_test")
    assert list(both) == ["gpt_neox.layers.1", "gpt_neox.layers.0"]
    assert both["gpt_neox.layers.1"] == first
    assert contents(first.path) == before
    assert "shards at gpt_neox.layers.0, " in caplog.text


def test_hookpoints_are_a_list_of_modules(make_study, tmp_path):
    with pytest.raises(ValueError, match=r"set hookpoints=\[gpt_neox.layers.0\]"):
        make_study(tmp_path, hookpoints="gpt_neox.layers.0")
    study = make_study(tmp_path, hookpoints=["gpt_neox.layers.7"])
    with pytest.raises(ValueError, match=r"gpt_neox.layers.7.*nearest"):
        harvest_for(study, "first")


class Stopped(Exception):
    """Raised by the tests."""


def finish_and_count(monkeypatch, stop_after: int | None = None) -> list[int]:
    """Collect the numbers of the shards that are made; stop when there are so many."""
    made, finish = [], ShardWriter.finish

    def counting(writer: ShardWriter) -> None:
        if stop_after is not None and len(made) == stop_after:
            raise Stopped
        made.append(writer.number)
        finish(writer)

    monkeypatch.setattr(ShardWriter, "finish", counting)
    return made


def stop_after_shards(num: int, study: Study, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        finish_and_count(patch, num)
        with pytest.raises(Stopped):
            harvest_for(study, "first")


def test_an_interrupted_harvest_continues_at_the_first_missing_shard(
    make_study, tmp_path, monkeypatch, caplog
):
    whole = harvest_for(make_study(tmp_path / "whole", shard_tokens=100), "first")
    num_shards = len(whole.manifest["shard_sizes"])
    assert num_shards > 8
    study = make_study(tmp_path / "parts", shard_tokens=100)
    for stop_after in (3, 0, 2):
        stop_after_shards(stop_after, study, monkeypatch)
    made = finish_and_count(monkeypatch)
    with caplog.at_level(logging.INFO):
        parts = harvest_for(study, "first")
    assert made == list(range(5, num_shards))
    assert "5 are there" in caplog.text
    assert contents(parts.path) == contents(whole.path)


def test_a_damaged_shard_of_an_interrupted_harvest_is_made_again(make_study, tmp_path, monkeypatch):
    whole = harvest_for(make_study(tmp_path / "whole", shard_tokens=100), "first")
    study = make_study(tmp_path / "parts", shard_tokens=100)
    stop_after_shards(4, study, monkeypatch)
    [partial] = (study.artifacts / "harvest").glob("*.partial")
    assert (partial / "shard_00003.json").exists()
    shard = partial / "shard_00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 8
    shard.write_bytes(content)
    (partial / "shard_00002.json").unlink()
    (partial / "shard_00005.unfinished").write_text("of a process that was killed")
    made = finish_and_count(monkeypatch)
    parts = harvest_for(study, "first")
    assert made == [1, 2, *range(4, len(whole.manifest["shard_sizes"]))]
    assert contents(parts.path) == contents(whole.path)


def test_an_interrupt_ends_the_harvest_as_an_interrupt(make_study, tmp_path, monkeypatch):
    def interrupted(writer: ShardWriter) -> None:
        raise KeyboardInterrupt("now")

    monkeypatch.setattr(ShardWriter, "finish", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="now"):
        harvest_for(make_study(tmp_path), "first")
    assert signal.getsignal(signal.SIGINT) is handler


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
import torch
from ssae.activation.writer import ShardWriter
from ssae.harvest import harvest_for

torch.set_num_threads(1)
finish, made = ShardWriter.finish, []

def dying(writer):
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)  # while the shard before may be on its way
    made.append(writer.number)
    finish(writer)

ShardWriter.finish = dying
harvest_for(pickle.loads(Path(sys.argv[1]).read_bytes()), "first")
"""


@pytest.mark.slow
def test_a_killed_harvest_continued_is_one_that_was_not_killed(make_study, tmp_path, monkeypatch):
    whole = harvest_for(make_study(tmp_path / "whole", shard_tokens=100), "first")
    study = make_study(tmp_path / "parts", shard_tokens=100)
    (tmp_path / "study.pickle").write_bytes(pickle.dumps(study))
    for _ in range(2):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "study.pickle")],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            timeout=120, capture_output=True, text=True,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    made = finish_and_count(monkeypatch)
    parts = harvest_for(study, "first")
    assert made[0] in (6, 7, 8)  # the shard in flight may be lost
    assert contents(parts.path) == contents(whole.path)


def test_of_a_damaged_harvest_only_the_damaged_shard_is_made_anew(
    make_study, tmp_path, monkeypatch
):
    study = make_study(tmp_path, shard_tokens=100)
    harvested = harvest_for(study, "first")
    before = contents(harvested.path)
    shard = harvested.path / "shard_00002.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 4
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged \(shard_00002.safetensors\)") as error:
        harvest_for(study, "first")
    command = str(error.value).rpartition(": ")[2].split()
    assert command[0] == "mv"
    shutil.move(*command[1:])
    made = finish_and_count(monkeypatch)
    assert contents(harvest_for(study, "first").path) == before
    assert made == [2]


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(
    make_study, tmp_path, monkeypatch
):
    study = make_study(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**26 + 50_000))
    expected = r"needs 0\.\d\d GB and 0.07 GB to spare, and .* has 0.07 GB free; set artifacts="
    with pytest.raises(ValueError, match=expected):
        harvest_for(study, "first")
    assert not list((study.artifacts / "harvest").glob("*.partial"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**26 + 200_000))
    harvest_for(study, "first")


def test_the_plan_is_told_before_the_work(make_study, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        harvested = harvest_for(make_study(tmp_path), "first")
    shards = len(harvested.manifest["shard_sizes"])
    tokens = harvested.manifest["num_tokens"]
    assert f"harvest: {tokens:,} tokens in {shards} shards at gpt_neox.layers.1, " in caplog.text
    assert " tokens/s" in caplog.text


def test_a_non_finite_activation_is_named(make_study, tmp_path):
    # Embeddings: anywhere else attention would spread it over the row.
    study = make_study(tmp_path, shard_tokens=100, hookpoint="gpt_neox.embed_in")
    corpus = read_corpus(study)
    tokens = everything(harvest(study, corpus, "general_test"))
    where = next(i for i in range(150, 400) if (tokens.token_ids != tokens.token_ids[i])[:i].all())
    broken = dataclasses.replace(study, artifacts=tmp_path / "broken")
    token, document, position = (int(column[where]) for column in tokens[1:])
    embedding = broken.language_model.model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[token] = float("nan")
    expected = f"embed_in, shard 1, .* document {document} at position {position} .token id {token}"
    with pytest.raises(ValueError, match=expected):
        harvest(broken, corpus, "general_test")


def test_a_context_longer_than_the_model_allows_is_refused(make_study, tmp_path):
    study = make_study(tmp_path, context_length=65)
    with pytest.raises(ValueError, match="longer than the 64 positions.*set context_length=64"):
        harvest_for(study, "first")


def test_the_model_as_stored_in_half_precision_is_harvested_in_it(make_study, tmp_path):
    study = make_study(tmp_path)
    half = dataclasses.replace(study.language_model, dtype="bfloat16")
    assert isinstance(half, LanguageModel)
    harvested = harvest_for(dataclasses.replace(study, language_model=half), "first")
    assert harvested.manifest["dtype"] == "bfloat16"
    assert everything(harvested).activations.dtype == torch.bfloat16
    assert harvested != harvest_for(study, "first")
