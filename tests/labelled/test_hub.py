import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from ssae.artifact.store import content_hash
from ssae.corpus import hub
from ssae.labelled.hub import LabelledHub

SHA = "0123456789abcdef0123456789abcdef01234567"
NAMES = {"profession": ["nurse", "surgeon"], "gender": ["male", "female"]}


def labelled(path: str | Path = "someone/bios", **changes) -> LabelledHub:
    values = {
        "label": "profession", "spurious": "gender", "text_field": "hard_text",
        "read_splits": ["train", "test"], "names": NAMES,
    }  # fmt: skip
    return LabelledHub(path=str(path), **values | changes)


def stored(split: str, num: int = 6) -> datasets.Dataset:
    """Rows as the hub has them: numbers for profession and gender."""
    rows = [
        {"hard_text": f"{split} {i}", "profession": i % 2, "gender": i // 2 % 2} for i in range(num)
    ]
    return datasets.Dataset.from_list(rows)


EXPECTED = [
    (f"{split} {i}", NAMES["profession"][i % 2], NAMES["gender"][i // 2 % 2], split)
    for split in ("train", "test")
    for i in range(6)
]


def plain(labelled: LabelledHub) -> list[tuple]:
    return [tuple(row[key] for key in ("text", "label", "spurious", "split")) for row in
            labelled.rows()]  # fmt: skip


def save(kind: str, folder: Path) -> Path:
    """Save both splits the way somebody has a copy of them."""
    splits = {split: stored(split) for split in ("train", "test")}
    if kind == "saved splits":
        datasets.DatasetDict(splits).save_to_disk(folder)
        return folder
    folder.mkdir()
    for split, rows in splits.items():
        if kind == "jsonl":
            lines = "\n".join(json.dumps(row) for row in rows)
            (folder / f"{split}.jsonl").write_text(lines)
        else:
            rows.to_parquet(folder / f"{split}.parquet")
    return folder


pytestmark = pytest.mark.usefixtures("no_known_commits")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> list:
    """A hub with the one dataset someone/bios; returns what it was asked for."""
    asked = []

    def dataset_info(self, path, revision=None):
        asked.append((path, revision))
        if path != "someone/bios":
            raise OSError(f"404 Client Error: {path} not found")
        return SimpleNamespace(sha=SHA)

    def load_dataset(path, name, split, revision, streaming):
        asked.append((path, name, split, revision, streaming))
        return stored(split).to_iterable_dataset()

    monkeypatch.setattr(hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_splits_are_streamed_in_order_from_the_resolved_commit(endpoint: list):
    assert plain(labelled(name="plain", revision="main")) == EXPECTED
    assert endpoint == [
        ("someone/bios", "main"),  # the hub is asked once
        ("someone/bios", "plain", "train", SHA, True),
        ("someone/bios", "plain", "test", SHA, True),
    ]


def test_a_full_commit_is_not_looked_up(endpoint: list):
    assert labelled(revision="f" * 40).identity()["commit"] == "f" * 40
    assert plain(labelled(revision="f" * 40, read_splits=["test"])) == EXPECTED[6:]
    assert endpoint == [("someone/bios", None, "test", "f" * 40, True)]


def test_the_commit_decides_the_content(endpoint: list, monkeypatch: pytest.MonkeyPatch):
    before = content_hash(labelled().identity())
    assert content_hash(labelled(revision=SHA).identity()) == before
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="f" * 40))
    assert content_hash(labelled().identity()) == before  # a run sees one commit
    hub.commit_of.cache_clear()
    assert content_hash(labelled().identity()) != before


def test_the_split_of_the_dataset_wins_over_a_column_of_that_name(tmp_path: Path):
    rows = stored("train").add_column("split", ["something else"] * 6)
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    found = plain(labelled(tmp_path / "saved", read_splits=["train"]))
    assert {row[3] for row in found} == {"train"}


@pytest.mark.parametrize("kind", ["saved splits", "jsonl", "parquet"])
def test_a_local_copy_needs_no_hub_and_may_be_moved(kind: str, tmp_path: Path):
    folder = save(kind, tmp_path / "local")
    assert plain(labelled(folder)) == EXPECTED
    assert plain(labelled(folder, read_splits=["test"])) == EXPECTED[6:]
    before = labelled(folder).identity()
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert labelled(moved).identity() == before
    assert str(tmp_path) not in json.dumps(before)
    file = next(path for path in sorted(moved.rglob("*")) if path.is_file())
    file.write_bytes(file.read_bytes() + b"\n")
    assert labelled(moved).identity() != before


def test_a_local_copy_without_splits_is_not_read_once_for_each(tmp_path: Path):
    stored("all").save_to_disk(tmp_path / "saved")
    assert len(plain(labelled(tmp_path / "saved", read_splits=["train"]))) == 6
    with pytest.raises(ValueError, match=r"labelled\.read_splits"):
        plain(labelled(tmp_path / "saved"))


def test_groups_are_loaded_by_the_names_of_numbers(tmp_path: Path):
    groups = labelled(save("parquet", tmp_path / "local")).load()
    assert groups.classes == ("nurse", "surgeon")
    assert sorted(groups.values) == ["female", "male"]
    assert sorted(
        zip(groups.texts, [groups.names[g] for g in groups.group], strict=True)
    ) == sorted((text, f"{label}, {spurious}") for text, label, spurious, _ in EXPECTED)
    assert groups.splits.tolist() == ["train"] * 6 + ["test"] * 6


def test_an_unknown_repository_gives_one_clear_error(endpoint: list):
    for use in (lambda own: own.identity(), plain):
        with pytest.raises(
            ValueError,
            match=r"labelled\.path: cannot read dataset 'x/y'.*404.*set labelled\.path=<a local",
        ):
            use(labelled("x/y"))


def test_a_hub_out_of_reach_says_how_to_do_without():
    # HF_HUB_OFFLINE=1, or a machine without a network: the real client, not a stub.
    for revision in (None, SHA):
        with pytest.raises(
            ValueError,
            match=r"cannot read dataset 'someone/bios'.*HF_HUB_OFFLINE, set labelled\.path=.*"
            r"labelled=files labelled\.path=FILE, or experiment=synthetic_bios",
        ):
            plain(labelled(revision=revision))


def test_a_wrong_column_lists_the_columns(endpoint: list):
    with pytest.raises(
        ValueError,
        match=r"someone/bios \(train\), row 1: field 'text' is not there; its fields are hard_text"
        r", profession, gender.*set labelled\.text_field=hard_text",
    ):
        plain(labelled(text_field="text"))


@pytest.mark.parametrize("kind", ["saved splits", "jsonl", "parquet"])
def test_a_split_that_does_not_exist_names_the_dataset_and_the_override(kind: str, tmp_path: Path):
    folder = save(kind, tmp_path / "local")
    with pytest.raises(ValueError, match="nope") as caught:
        plain(labelled(folder, read_splits=["nope"]))
    assert str(folder) in str(caught.value)
    assert "labelled.read_splits" in str(caught.value)


@pytest.mark.parametrize("wrong", ["train", []])
def test_splits_that_are_no_list_are_refused_with_the_override(wrong, endpoint: list):
    with pytest.raises(ValueError, match=r"labelled\.read_splits must .*set labelled\.read_splits"):
        list(labelled(read_splits=wrong).rows())


def test_a_broken_local_copy_is_named(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"hard_text": "cut')
    with pytest.raises(ValueError, match=r"labelled\.path") as caught:
        plain(labelled(tmp_path, read_splits=["train"]))
    assert str(tmp_path) in str(caught.value)
