import re
from collections import Counter
from pathlib import Path

import pytest

from ssae.artifact.store import content_hash
from ssae.corpus.base import fingerprint, share_of_hash
from ssae.corpus.synthetic_bios import SOURCE, Biographies, SyntheticBiosPool
from ssae.labelled.synthetic import TRADES, SyntheticBios


def corpus(**changes) -> SyntheticBiosPool:
    values = {
        "min_characters": 20, "max_characters": None, "subdomain_source": SOURCE,
        "packages": ["fake_prose"], "seeds_source": "none", "test_share": 0.5,
        "general_test_share": 0.3, "num_workers": 0, "num_biographies": 60, "num_seeds": 8,
        "num_test": 12,
    }  # fmt: skip
    return SyntheticBiosPool(**values | changes)


@pytest.fixture(autouse=True)
def fake_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with 120 docstrings."""
    folder = tmp_path / "fake_prose"
    folder.mkdir()
    (folder / "__init__.py").touch()
    functions = (
        f'def f{i}():\n    """Return the value number {i}, as a list."""' for i in range(120)
    )
    (folder / "module.py").write_text("\n".join(functions))
    monkeypatch.syspath_prepend(tmp_path)


def texts(name: str, num: int) -> list[str]:
    return [document["text"] for document in Biographies(name, num).documents()]


def test_the_pool_holds_docstrings_and_biographies_and_the_splits_only_biographies(read):
    found = read(corpus())
    kinds = Counter(source.split(".")[0] for source in found.pool.sources())
    assert set(kinds) == {"fake_prose", SOURCE}
    assert kinds[SOURCE] == 60
    general = found.documents("general_test")
    assert {source.split(".")[0] for _, source in general} == {"fake_prose"}
    assert kinds["fake_prose"] + len(general) == 120
    for split, num in (("seeds", 8), ("subdomain_test", 12)):
        assert len(found.texts(split)) == num
        assert {source.split(".")[0] for _, source in found.documents(split)} == {SOURCE}


def test_docstrings_are_held_out_by_hash_and_biographies_never(read):
    found = read(corpus())
    documents = [*found.documents("pool"), *found.documents("general_test")]
    expected = {
        text for text, source in documents
        if source.startswith("fake_prose") and share_of_hash(text) < 0.3
    }  # fmt: skip
    assert set(found.texts("general_test")) == expected
    assert 15 < len(expected) < 60
    assert min(share_of_hash(text) for text in texts("pool", 60)) < 0.3  # and yet in the pool


def test_the_biographies_of_the_pool_are_the_subdomain():
    own = corpus()
    for trade in TRADES:
        assert own.is_subdomain(f"{SOURCE}.{trade}")
    assert not own.is_subdomain("fake_prose.module")
    everything = [document for part in own.parts() for document in part.documents()]
    truth = own.in_subdomain(document["source"] for document in everything)
    assert truth is not None
    assert truth.sum() == 60


def test_no_biography_is_in_two_sets_or_labelled():
    sets = [texts(name, 300) for name in ("pool", "seeds", "subdomain_test")]
    # With the settings of the pool, so that only the generators differ.
    labelled = SyntheticBios(
        label="profession", spurious="gender", num_documents=1600, correlation=0.9, purity=1.0,
        cues=1.0, seed=0,
    )  # fmt: skip
    sets.append([row["text"] for row in labelled.rows()])
    keys = [{fingerprint(text) for text in own} for own in sets]
    assert [len(own) for own in keys[:3]] == [300] * 3
    assert len(set.union(*keys)) == sum(map(len, keys))


def test_biographies_are_of_all_trades_and_by_half_about_men():
    documents = list(Biographies("pool", 600).documents())
    trades = Counter(document["source"].removeprefix(f"{SOURCE}.") for document in documents)
    assert set(trades) == set(TRADES)
    assert min(trades.values()) > 60
    men = sum(re.search(r"\bMr\.", document["text"]) is not None for document in documents)
    women = sum(re.search(r"\bMs\.", document["text"]) is not None for document in documents)
    assert men + women == 600  # every sentence tells it
    assert 250 < men < 350


def test_biographies_are_the_same_again_and_a_longer_set_begins_with_a_shorter_one():
    assert texts("pool", 50) == texts("pool", 50) == texts("pool", 80)[:50]
    assert texts("pool", 0) == []


def test_sizes_and_packages_decide_the_content():
    def hashed(**changes) -> str:
        own = corpus(**changes)
        return content_hash({"corpus": own, "identity": own.identity()})

    assert hashed() == hashed(num_workers=2)
    changes = [{"num_biographies": 61}, {"num_seeds": 9}, {"num_test": 13}, {"packages": ["yaml"]}]
    assert len({hashed(), *(hashed(**change) for change in changes)}) == 5
    assert "biographies" in corpus().identity()


@pytest.mark.parametrize("name", ["num_biographies", "num_seeds", "num_test"])
def test_sizes_that_are_no_numbers_are_refused(name: str):
    with pytest.raises(
        ValueError, match=rf"corpus\.{name} must be a whole number, got 'x'; set corpus\.{name}="
    ):
        corpus(**{name: "x"})
