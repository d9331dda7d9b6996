import functools
import hashlib
import json
from pathlib import Path

import pytest

from ssae.artifact.store import content_hash
from ssae.corpus.base import fingerprint
from ssae.corpus.labelled_seeds import LabelledSeeds
from ssae.labelled.files import LabelledFile
from tests.conftest import biographies


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def pool(tmp_path: Path) -> str:
    return write(tmp_path / "pool.jsonl", [{"text": f"pool text {i}"} for i in range(60)])


bios = functools.partial(biographies, num_documents=120, correlation=0.8, cues=0.5)


def corpus(pool: str, **changes) -> LabelledSeeds:
    values = {
        "min_characters": 1, "max_characters": None, "subdomain_source": None, "test_share": 0.2,
        "general_test_share": 0.3, "text_field": "text", "source_field": "source",
        "num_workers": 0, "labelled": bios(), "num_seeds": 10, "num_test": 25,
    }  # fmt: skip
    return LabelledSeeds(pool=pool, **values | changes)


def own_texts(corpus: LabelledSeeds) -> dict[str, list[str]]:
    return {
        name: [document["text"] for document in documents]
        for name, documents in corpus.own_documents().items()
    }


def test_seeds_and_test_are_documents_in_which_label_and_attribute_agree(pool: str):
    groups = bios().load()
    found = own_texts(corpus(pool))
    assert {name: len(texts) for name, texts in found.items()} == {
        "seeds": 10, "subdomain_test": 25
    }  # fmt: skip
    agree = {text for text, a in zip(groups.texts, groups.is_ambiguous, strict=True) if a}
    taken = found["seeds"] + found["subdomain_test"]
    assert set(taken) <= agree
    assert len(set(taken)) == 35
    for group in (0, 3):  # of both large groups
        assert any(groups.group[groups.texts.index(text)] == group for text in found["seeds"])


def test_they_are_taken_by_hash_whatever_the_order_of_the_data(pool: str, tmp_path: Path):
    rows = [
        {"text": f"Document  {i}", "job": "ab"[i % 2], "sex": "xy"[(i + (i % 5 == 0)) % 2]}
        for i in range(100)
    ]
    found = []
    for name, own in (("there", rows), ("back", rows[::-1])):
        labelled = LabelledFile(
            label="job", spurious="sex", path=write(tmp_path / f"{name}.jsonl", own),
            text_field="text", split_field="split",
        )  # fmt: skip
        found.append(own_texts(corpus(pool, labelled=labelled, num_seeds=7, num_test=9)))
    assert found[0] == found[1]

    def place(text: str) -> int:
        key = hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
        return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)

    agree = [row["text"] for i, row in enumerate(rows) if i % 5]
    expected = sorted(agree, key=place)[:16]
    assert found[0] == {"seeds": expected[:7], "subdomain_test": expected[7:]}


def test_repeats_and_short_documents_are_never_seeds(pool: str, tmp_path: Path):
    pairs = [("a", "x"), ("b", "y")] * 40 + [("a", "y"), ("b", "x")]
    rows = [
        {"text": "tiny" if i % 4 == 0 else f"Document {i // 4}" + " long" * (i % 4), "job": a,
         "sex": b}
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip
    rows += [{**row, "text": row["text"].upper() + " "} for row in rows]
    labelled = LabelledFile(
        label="job", spurious="sex", path=write(tmp_path / "d.jsonl", rows), text_field="text",
        split_field="split",
    )  # fmt: skip
    found = own_texts(corpus(pool, labelled=labelled, min_characters=5, num_seeds=10, num_test=15))
    taken = found["seeds"] + found["subdomain_test"]
    assert min(map(len, taken)) >= 5
    assert len({text.strip().lower() for text in taken}) == 25


def test_the_corpus_is_read_with_seeds_tests_and_a_held_out_general_test(pool: str, read):
    labelled = bios()
    found = read(corpus(pool))
    seeds, test = (found.texts(name) for name in ("seeds", "subdomain_test"))
    known = {fingerprint(text) for text in labelled.load().texts}
    assert {fingerprint(text) for text in seeds + test} <= known
    assert (len(seeds), len(test)) == (10, 25)
    assert {source for _, source in found.documents("seeds")} == {"profession"}
    general = found.texts("general_test")
    assert 5 < len(general) < 35
    assert sorted([*general, *found.texts("pool")]) == sorted(f"pool text {i}" for i in range(60))


def test_a_general_test_in_a_file_is_used_as_it_is(pool: str, tmp_path: Path, read):
    general = write(tmp_path / "general.jsonl", [{"text": "gen one"}, {"text": "gen two"}])
    found = read(corpus(pool, general_test=general))
    assert sorted(found.texts("general_test")) == ["gen one", "gen two"]
    assert len(found.texts("pool")) == 60


def test_labelled_documents_in_the_pool_are_taken_out_if_they_are_seeds_or_tests(
    tmp_path: Path, read
):
    groups = bios().load()
    rows = [{"text": text.upper()} for text in groups.texts] + [{"text": "pool text"}]
    found = read(corpus(write(tmp_path / "p.jsonl", rows), general_test_share=0.1))
    own = {fingerprint(text) for name in ("seeds", "subdomain_test") for text in found.texts(name)}
    assert len(own) == 35
    assert own.isdisjoint(map(fingerprint, found.texts("pool")))


def test_too_few_labelled_documents_are_refused_with_their_number(pool: str):
    agree = int(bios().load().is_ambiguous.sum())
    most = agree // 2 - 10
    assert len(own_texts(corpus(pool, num_test=most))["subdomain_test"]) == most
    with pytest.raises(
        ValueError,
        match=rf"corpus\.num_seeds=10 and corpus\.num_test={most + 1} must leave half of the "
        rf"{agree} .*set corpus\.num_seeds=.* corpus\.num_test=",
    ):
        corpus(pool, num_test=most + 1).own_documents()


def test_labelled_documents_pool_and_sizes_decide_the_content(pool: str, tmp_path: Path):
    rows = [{"text": f"t{i}", "profession": "ab"[i % 2], "gender": "xy"[i % 2]} for i in range(9)]

    def labelled(number: int) -> LabelledFile:
        return LabelledFile(
            label="profession", spurious="gender", text_field="text", split_field="split",
            path=write(tmp_path / f"{number}.jsonl", rows[:number]),
        )  # fmt: skip

    def hashed(path: str = pool, **changes) -> str:
        own = corpus(path, **changes)
        return content_hash({"corpus": own, "identity": own.identity()})

    assert hashed(labelled=labelled(9)) == hashed(labelled=labelled(9))
    changes = [
        {"labelled": labelled(9)}, {"labelled": labelled(8)}, {"num_seeds": 9}, {"num_test": 9},
        {"labelled": bios(seed=1)}, {"path": write(tmp_path / "q.jsonl", [{"text": "other"}])},
    ]  # fmt: skip
    assert len({hashed(), *(hashed(**change) for change in changes)}) == 7
    # Embeddings of the pool outlive other seeds.
    assert corpus(pool).pool_identity() == corpus(pool, num_seeds=9).pool_identity()


def test_shares_out_of_range_are_refused_with_the_override(pool: str):
    with pytest.raises(ValueError, match=r"set corpus\.general_test_share=0\.2"):
        corpus(pool, general_test_share=1.0)
