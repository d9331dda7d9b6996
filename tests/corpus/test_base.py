import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssae.corpus.base import fingerprint, normalised, share_of_hash, short_fingerprint

NOTHING_LEFT_OUT = {"num_held_back": 0, "num_repeats": 0, "num_short_or_long": 0}


def left_out(artifact) -> dict[str, int]:
    return {name: artifact.manifest[name] for name in NOTHING_LEFT_OUT}


def test_splits_are_stored_and_counted(listed, read):
    found = read(listed(["pool one", "pool two"]))
    assert found.documents("pool") == [("pool one", "web"), ("pool two", "web")]
    assert found.documents("seeds") == [("seed one", "web")]
    manifest = found.artifact.manifest
    assert manifest["pool"] == {"num_documents": 2, "num_characters": 16}
    assert manifest["subdomain_test"] == {"num_documents": 1, "num_characters": 8}
    assert left_out(found.artifact) == NOTHING_LEFT_OUT
    assert not list(found.artifact.path.glob("held_out"))


def test_short_documents_and_repeats_are_left_out(listed, read):
    found = read(listed([("Two words", "a"), ("two\n WORDS ", "b"), ("no", "c")]))
    assert found.documents("pool") == [("Two words", "a")]
    counts = {"num_repeats": 1, "num_short_or_long": 1}
    assert left_out(found.artifact) == NOTHING_LEFT_OUT | counts


def test_documents_of_the_pool_that_are_too_long_are_left_out_and_of_other_splits_are_not(
    listed, read
):
    corpus = listed(["x" * 20, "y" * 21], seeds=["z" * 30], max_characters=20)
    found = read(corpus)
    assert found.texts("pool") == ["x" * 20]
    assert found.texts("seeds") == ["z" * 30]
    assert left_out(found.artifact) == NOTHING_LEFT_OUT | {"num_short_or_long": 1}


def test_seeds_and_test_documents_are_taken_out_of_the_pool(listed, read):
    found = read(listed(["keep me", "Seed  one", "sub test", "gen test", "GEN test"]))
    assert found.texts("pool") == ["keep me"]
    assert left_out(found.artifact) == NOTHING_LEFT_OUT | {"num_held_back": 4}


@pytest.mark.parametrize("split", ["subdomain_test", "general_test"])
def test_a_seed_in_a_test_split_is_refused(listed, read, split: str):
    with pytest.raises(ValueError, match=f"1 seeds are also in {split}"):
        read(listed(["pool one"], **{split: ["SEED one"]}))


@pytest.mark.parametrize("split", ["pool", "seeds", "subdomain_test", "general_test"])
def test_a_split_without_a_long_enough_document_is_named(listed, read, tmp_path, split: str):
    parts = [["x"]] if split == "pool" else [["pool one"]]
    changes = {} if split == "pool" else {split: ["x"]}
    with pytest.raises(ValueError, match=f"split '{split}' has no document of at least 3"):
        read(listed(*parts, **changes))
    assert not list(tmp_path.glob("artifacts/corpus/*/DONE"))


def test_a_pool_without_a_part_or_with_long_documents_only_is_named(listed, read):
    with pytest.raises(ValueError, match=r"split 'pool' has no .* at least 3 characters; .*pool"):
        read(listed())
    with pytest.raises(ValueError, match=r"split 'pool' has no .* at least 3 and at most 4 char"):
        read(listed(["long one"], max_characters=4))


def test_a_pool_of_nothing_but_seeds_is_refused(listed, read):
    with pytest.raises(ValueError, match=r"every document of corpus\.pool"):
        read(listed(["seed one"]))


def test_the_subdomain_is_a_source_and_everything_below_it(listed):
    sources = ["a.b", "a.b.c", "a.bc", "a", "x.a.b"]
    truth = listed(subdomain_source="a.b").in_subdomain(sources)
    assert truth.tolist() == [True, True, False, False, False]
    assert listed().in_subdomain(sources) is None


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"min_characters": 0}, r"at least 1, got 0; set corpus\.min_characters=100$"),
        ({"max_characters": 2}, r"min_characters=3, got 2; set corpus\.max_characters=null$"),
        ({"num_workers": -1}, r"at least 0, got -1; set corpus\.num_workers=null$"),
    ],
)
def test_a_limit_out_of_range_is_refused(listed, wrong: dict, remedy: str):
    with pytest.raises(ValueError, match=remedy):
        listed(**wrong)


def test_hash_shares_are_uniform_and_never_change():
    shares = [share_of_hash(f"text {i}") for i in range(2000)]
    assert 0.17 < sum(share < 0.2 for share in shares) / 2000 < 0.23
    assert share_of_hash("a") == pytest.approx(0xCA978112 / 2**32)  # the sha256's first digits


@given(st.text())
def test_shares_lie_in_the_unit_interval_and_prints_ignore_case_and_space(text: str):
    assert 0 <= share_of_hash(text) < 1
    assert fingerprint(f" {text}\n ") == fingerprint(text)
    assert fingerprint(text.lower()) == fingerprint(text)
    assert f"{short_fingerprint(text):016x}" == fingerprint(text)[:16]
    assert normalised(normalised(text)) == normalised(text)


def test_the_first_documents_of_a_test_split_are_a_fair_sample(listed, read):
    rows = [(f"document number {i}", "first" if i < 100 else "second") for i in range(200)]
    found = read(listed(["pool one"], general_test=rows)).documents("general_test")
    sources = [source for _, source in found[:50]]
    assert 15 <= sources.count("first") <= 35
    assert len(found) == 200
