import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from ssae.artifact.store import content_hash
from ssae.corpus import hub
from ssae.corpus.hub import Hub

SHA = "0123456789abcdef0123456789abcdef01234567"


def excerpt(path: str, **changes) -> dict:
    return {"path": path, "split": "train", "text_field": "text", "num_documents": 5, **changes}


def corpus(path: str = "someone/texts", **changes) -> Hub:
    splits = {
        name: excerpt(path, skip_documents=5 * i)
        for i, name in enumerate(("pool", "seeds", "subdomain_test", "general_test"))
    }
    return Hub(
        min_characters=1, max_characters=None, subdomain_source=None, num_workers=0,
        **splits | changes,
    )  # fmt: skip


def documents(hub: Hub) -> list[tuple[str, str]]:
    """What the parts of the pool hold, in order."""
    return [(d["text"], d["source"]) for part in hub.parts() for d in part.documents()]


pytestmark = pytest.mark.usefixtures("no_known_commits")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> list:
    """A hub with the one dataset someone/texts; returns what it was asked for."""
    asked = []

    def dataset_info(self, path, revision=None):
        if path != "someone/texts":
            raise OSError(f"404 Client Error: {path} not found")
        return SimpleNamespace(sha=SHA)

    def load_dataset(path, name, split, revision, streaming):
        asked.append((path, name, split, revision, streaming))
        rows = [{"text": f"text {i}", "label": f"l{i}"} for i in range(20)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_each_split_takes_its_documents_from_the_resolved_commit(endpoint: list, read):
    found = read(corpus())
    assert endpoint == [("someone/texts", None, "train", SHA, True)] * 4  # each read once
    assert found.texts("seeds") == [f"text {i}" for i in range(5, 10)]
    assert sorted(found.texts("general_test")) == [f"text {i}" for i in range(15, 20)]
    assert set(found.pool.sources()) == {"someone/texts"}


def test_a_source_field_labels_the_documents(endpoint: list):
    labelled = corpus(pool=excerpt("someone/texts", source_field="label"))
    assert documents(labelled) == [(f"text {i}", f"l{i}") for i in range(5)]


def test_the_commit_decides_the_content(endpoint: list, monkeypatch: pytest.MonkeyPatch):
    before = content_hash(corpus().identity())
    assert corpus().identity()["pool"]["revision"] == SHA
    assert content_hash(corpus().identity()) == before
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="f" * 40))
    assert content_hash(corpus().identity()) == before  # a run sees one commit
    hub.commit_of.cache_clear()
    assert content_hash(corpus().identity()) != before


def test_a_full_commit_is_not_looked_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("asked the hub"))
    pinned = excerpt("someone/texts", revision=SHA)
    names = ("pool", "seeds", "subdomain_test", "general_test")
    assert corpus(**dict.fromkeys(names, pinned)).identity()["pool"]["revision"] == SHA


def test_an_unknown_repository_gives_one_clear_error(endpoint: list):
    with pytest.raises(
        ValueError, match=r"corpus\.seeds: cannot read dataset 'x/y'.*404.*corpus=files"
    ):
        corpus(seeds=excerpt("x/y")).identity()


def test_a_hub_out_of_reach_gives_one_clear_error():
    # HF_HUB_OFFLINE=1, or a machine without a network: the real client, not a stub.
    with pytest.raises(ValueError, match=r"cannot read dataset 'someone/texts'.*HF_HUB_OFFLINE"):
        corpus().identity()
    pinned = corpus(pool=excerpt("someone/texts", revision=SHA))
    with pytest.raises(ValueError, match=r"cannot read dataset|someone/texts"):
        documents(pinned)


def test_a_wrong_column_lists_the_columns(endpoint: list):
    wrong = corpus(pool=excerpt("someone/texts", text_field="body"))
    with pytest.raises(
        ValueError, match=r"'body'.*columns are text, label: set corpus\.pool\.text"
    ):
        documents(wrong)


def test_a_text_of_null_is_an_empty_document(tmp_path: Path):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    found = documents(corpus(pool=excerpt(str(tmp_path / "saved"), num_documents=3)))
    assert [text for text, _ in found] == ["one", "", "two"]


def test_too_few_documents_are_counted(endpoint: list):
    wrong = corpus(pool=excerpt("someone/texts", skip_documents=18))
    with pytest.raises(ValueError, match=r"only 20 documents.*lower corpus\.pool\.num_documents"):
        documents(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"textfield": "x"}, "no key 'textfield'; did you mean text_field"),
        ({"path": None}, "lacks path"),
        ({"num_documents": 0}, "num_documents >= 1"),
        ({"skip_documents": -1}, "skip_documents >= 0"),
    ],
)
def test_a_wrong_excerpt_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        corpus(seeds=excerpt("someone/texts") | changes)


@pytest.mark.parametrize("kind", ["saved", "saved splits", "jsonl", "parquet"])
def test_a_local_directory_needs_no_hub(kind: str, tmp_path: Path, read):
    rows = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(20)]})
    folder = tmp_path / "local"
    folder.mkdir()
    if kind == "saved":
        rows.save_to_disk(folder)
    elif kind == "saved splits":
        datasets.DatasetDict(train=rows).save_to_disk(folder)
    elif kind == "jsonl":
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        rows.to_parquet(folder / "train.parquet")
    found = read(corpus(str(folder)))
    assert found.texts("pool") == [f"text {i}" for i in range(5)]
    assert sorted(found.texts("subdomain_test")) == [f"text {i}" for i in range(10, 15)]
    moved = str(shutil.copytree(folder, tmp_path / "moved"))
    assert corpus(moved).identity() == corpus(str(folder)).identity()


def test_a_split_that_does_not_exist_names_the_dataset(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "x"}')
    wrong = corpus(pool=excerpt(str(tmp_path), split="nope"))
    with pytest.raises(ValueError, match=r"corpus\.pool: .*nope"):
        documents(wrong)
