import dataclasses
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssae.corpus.base import Corpus, fingerprint, load_splits, share_of_hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed(Corpus):
    splits: dict

    def identity(self):
        return {}

    def read(self):
        return {
            name: [{"text": text, "source": source} for text, source in documents]
            for name, documents in self.splits.items()
        }


def corpus(min_characters: int = 3, subdomain_source: str | None = None, **splits) -> Listed:
    default = {
        "pool": [("pool one", "web"), ("pool two", "web")],
        "seeds": [("seed one", "web")],
        "subdomain_test": [("sub test", "web")],
        "general_test": [("gen test", "web")],
    }
    return Listed(
        min_characters=min_characters, subdomain_source=subdomain_source, splits=default | splits
    )


def test_splits_are_stored_and_counted(tmp_path: Path):
    artifact = corpus().build(tmp_path)
    splits = load_splits(artifact)
    assert splits.pool[:] == {"text": ["pool one", "pool two"], "source": ["web", "web"]}
    assert artifact.manifest["pool"] == {"num_documents": 2, "num_characters": 16}
    assert artifact.manifest["num_pool_dropped"] == 0


def test_short_documents_and_repeats_are_left_out(tmp_path: Path):
    pool = [("Two words", "a"), ("two\n WORDS ", "b"), ("no", "c")]
    splits = load_splits(corpus(pool=pool).build(tmp_path))
    assert splits.pool[:] == {"text": ["Two words"], "source": ["a"]}


def test_seeds_and_test_documents_are_taken_out_of_the_pool(tmp_path: Path):
    pool = [("keep me", "a"), ("Seed  one", "a"), ("sub test", "a"), ("gen test", "a")]
    artifact = corpus(pool=pool).build(tmp_path)
    assert load_splits(artifact).pool["text"][:] == ["keep me"]
    assert artifact.manifest["num_pool_dropped"] == 3


@pytest.mark.parametrize("split", ["subdomain_test", "general_test"])
def test_a_seed_in_a_test_split_is_refused(tmp_path: Path, split: str):
    with pytest.raises(ValueError, match=f"1 seeds are also in {split}"):
        corpus(**{split: [("SEED one", "x")]}).build(tmp_path)


@pytest.mark.parametrize("split", ["pool", "seeds", "subdomain_test", "general_test"])
def test_a_split_without_a_long_enough_document_is_named(tmp_path: Path, split: str):
    with pytest.raises(ValueError, match=f"split '{split}' has no document of at least 3"):
        corpus(**{split: [("x", "y")]}).build(tmp_path)


def test_a_pool_of_nothing_but_seeds_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"every document of corpus\.pool"):
        corpus(pool=[("seed one", "x")]).build(tmp_path)


def test_the_subdomain_is_a_source_and_everything_below_it():
    documents = datasets.Dataset.from_dict({"source": ["a.b", "a.b.c", "a.bc", "a", "x.a.b"]})
    expected = [True, True, False, False, False]
    assert corpus(subdomain_source="a.b").in_subdomain(documents) == expected
    assert corpus().in_subdomain(documents) is None


def test_a_minimum_below_one_is_refused():
    with pytest.raises(ValueError, match=r"corpus\.min_characters=100"):
        corpus(min_characters=0)


def test_hash_shares_are_uniform_and_never_change():
    shares = [share_of_hash(f"text {i}") for i in range(2000)]
    assert 0.17 < sum(share < 0.2 for share in shares) / 2000 < 0.23
    assert share_of_hash("a") == pytest.approx(0xCA978112 / 2**32)  # the sha256's first digits


@given(st.text())
def test_shares_lie_in_the_unit_interval_and_prints_ignore_case_and_space(text: str):
    assert 0 <= share_of_hash(text) < 1
    assert fingerprint(f" {text}\n ") == fingerprint(text)
    assert fingerprint(text.lower()) == fingerprint(text)


def test_the_first_documents_of_a_test_split_are_a_fair_sample(tmp_path: Path):
    listed = [(f"document number {i}", "first" if i < 100 else "second") for i in range(200)]
    splits = load_splits(corpus(general_test=listed).build(tmp_path))
    sources = splits.general_test["source"][:50]
    assert 15 <= sources.count("first") <= 35
    assert len(splits.general_test) == 200
