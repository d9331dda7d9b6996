import csv
import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssae.artifact.store import content_hash
from ssae.labelled.base import WrongDocument
from ssae.labelled.files import LabelledFile

ROWS = [
    {"text": 'one, "quoted"\nline', "profession": "nurse", "gender": "female", "split": "train"},
    {"text": "caf\u00e9 e\u0301", "profession": "surgeon", "gender": "male", "split": "test"},
    {"text": "", "profession": "surgeon", "gender": "female", "split": "test"},
]
GOOD = json.dumps(ROWS[1]) + "\n"


def labelled(path: Path, **changes) -> LabelledFile:
    values = {"label": "profession", "spurious": "gender", "text_field": "text"}
    return LabelledFile(path=str(path), **values | {"split_field": "split"} | changes)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Rows in the format that the file's name says."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    match path.name.split(".", 1)[1]:
        case "jsonl":
            write(path, lines)
        case "jsonl.gz":
            write(path, gzip.compress(lines.encode()))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "csv" | "csv.gz":
            opened = gzip.open if path.name.endswith("gz") else open
            with opened(path, "wt", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    return path


def plain(labelled: LabelledFile) -> list[tuple]:
    return [tuple(row[key] for key in ("text", "label", "spurious", "split")) for row in
            labelled.rows()]  # fmt: skip


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(end: str, tmp_path: Path):
    path = write_rows(tmp_path / f"data.{end}", ROWS)
    assert plain(labelled(path)) == [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_a_table_of_commas_gives_the_rows_that_have_text(end: str, tmp_path: Path):
    path = write_rows(tmp_path / f"data.{end}", ROWS[:2])
    assert plain(labelled(path)) == [tuple(row.values()) for row in ROWS[:2]]


def test_fields_of_any_name_and_numbers_with_names_are_read(tmp_path: Path):
    rows = [{"body": f"b{i}", "job": i % 2, "sex": 1 - i % 2, "fold": i, "extra": 1.5}
            for i in range(4)]  # fmt: skip
    for end in ("jsonl", "csv", "parquet"):
        found = labelled(
            write_rows(tmp_path / f"d.{end}", rows), label="job", spurious="sex",
            text_field="body", split_field="fold", names={"sex": ["m", "f"]},
        )  # fmt: skip
        assert plain(found) == [(f"b{i}", str(i % 2), "fm"[i % 2], str(i)) for i in range(4)]


def test_rows_without_a_split_have_none(tmp_path: Path):
    rows = [{key: value for key, value in row.items() if key != "split"} for row in ROWS]
    assert [row[3] for row in plain(labelled(write_rows(tmp_path / "d.jsonl", rows)))] == [None] * 3


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path):
    row = {**ROWS[0], "text": "one\u2028still one\x85still"}
    assert plain(labelled(write_rows(tmp_path / "d.jsonl", [row])))[0][0] == row["text"]


@pytest.mark.parametrize("name", ["a [1].jsonl", "what?.jsonl", "folder [x]/d.jsonl"])
def test_a_name_with_wildcards_is_the_name_of_one_file(name: str, tmp_path: Path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_rows(tmp_path / "whats.jsonl", ROWS[:1])
    path = write_rows(tmp_path / name, ROWS[1:2])
    assert plain(labelled(path)) == [tuple(ROWS[1].values())]


def test_the_bytes_decide_the_content_and_not_the_place(tmp_path: Path):
    (tmp_path / "here").mkdir()
    here = write_rows(tmp_path / "here/d.jsonl", ROWS)
    there = shutil.copytree(tmp_path / "here", tmp_path / "there") / "other.jsonl"
    shutil.move(tmp_path / "there/d.jsonl", there)

    def hashed(path: Path, **changes) -> str:
        own = labelled(path, **changes)
        return content_hash({"labelled": own, "identity": own.identity()})

    assert hashed(here) == hashed(there)
    assert hashed(here) != hashed(here, spurious="split")
    assert hashed(here) != hashed(here, names={"gender": ["a", "b"]})
    write(there, there.read_bytes() + GOOD.encode())
    assert hashed(here) != hashed(there)


BROKEN = {
    "malformed JSON": ("p.jsonl", GOOD + '{"text": "cut', "an object like"),
    "not an object": ("p.jsonl", GOOD + '["text"]\n', "an object like"),
    "invalid UTF-8": ("p.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}', "utf-?8"),
    "empty": ("p.jsonl", "", "an object like"),
    "not gzip": ("p.jsonl.gz", GOOD, "gzip"),
    "truncated gzip": ("p.jsonl.gz", gzip.compress((GOOD * 9999).encode())[:-20], "end-of-stream"),
    "not parquet": ("p.parquet", "text", "(?i)parquet"),
    "empty table": ("p.csv", "", "olumns"),
    "ragged table": ("p.csv", "text,profession,gender\na,b,c\na,b,c,d\n", "line 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_gives_one_error_that_names_the_file(case: str, tmp_path: Path):
    name, content, message = BROKEN[case]
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        list(labelled(path).rows())
    assert type(caught.value) is WrongDocument
    assert str(path) in str(caught.value)
    assert "cannot be read" in str(caught.value)


def test_a_wrong_row_is_named_by_its_number_and_file(tmp_path: Path):
    path = write_rows(tmp_path / "d.jsonl", [*ROWS, {**ROWS[0], "gender": None}])
    with pytest.raises(
        ValueError, match=r"d\.jsonl, row 4: field 'gender' is empty; .*set shift\.spurious="
    ):
        list(labelled(path).rows())
    with pytest.raises(
        ValueError, match=r"d\.jsonl, row 1: field 'txt' is not there; .*set .*text_field=text"
    ):
        list(labelled(path, text_field="txt").rows())


def test_a_missing_file_and_an_unknown_suffix_are_refused_with_the_override(tmp_path: Path):
    for use in (lambda own: own.identity(), lambda own: list(own.rows())):
        with pytest.raises(
            ValueError, match=r"labelled\.path: there is no file .*no\.jsonl .*set labelled\.path="
        ):
            use(labelled(tmp_path / "no.jsonl"))
        with pytest.raises(ValueError, match=r"there is no file"):
            use(labelled(tmp_path))
        with pytest.raises(ValueError, match=r"\.jsonl, \.jsonl\.gz, \.csv, .*set labelled\.path="):
            use(labelled(write(tmp_path / "p.json", "[]")))


def test_the_home_folder_may_be_spelt_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "d.jsonl", ROWS)
    assert len(plain(labelled(Path("~/d.jsonl")))) == 3


def test_groups_of_a_file_are_those_of_its_rows(tmp_path: Path):
    pairs = [("nurse", "female")] * 5 + [("surgeon", "male")] * 4 + [("nurse", "male")] * 2
    rows = [{"text": f"t{i}", "profession": a, "gender": b} for i, (a, b) in enumerate(pairs)]
    groups = labelled(write_rows(tmp_path / "d.parquet", rows)).load()
    assert (groups.classes, groups.values) == (("nurse", "surgeon"), ("female", "male"))
    assert groups.counts.tolist() == [5, 2, 0, 4]
    assert groups.texts == [f"t{i}" for i in range(11)]
