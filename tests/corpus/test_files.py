import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssae.artifact.store import content_hash
from ssae.corpus.files import Files


def line(text: str, **fields: str) -> str:
    return json.dumps({"text": text, **fields}, ensure_ascii=False) + "\n"


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def corpus(pool, seeds, **changes) -> Files:
    values = {
        "min_characters": 1,
        "max_characters": None,
        "subdomain_source": None,
        "test_share": 0.3,
        "general_test_share": 0.3,
        "text_field": "text",
        "source_field": "source",
        "num_workers": 0,
    }
    return Files(pool=pool, seeds=seeds, **values | changes)


def documents(files: Files) -> list[tuple[str, str]]:
    """What the parts of the pool hold, in order."""
    return [(d["text"], d["source"]) for part in files.parts() for d in part.documents()]


@pytest.fixture
def seeds(tmp_path: Path) -> str:
    return write(tmp_path / "s.jsonl", "".join(line(f"seed number {i}") for i in range(20)))


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, seeds: str):
    rows = [("first  document", "a"), ("second, caf\u00e9 e\u0301", "b")]
    lines = "".join(line(text, source=source) for text, source in rows)
    table = pa.table({"source": ["a", "b"], "other": [1, 2], "text": [text for text, _ in rows]})
    pq.write_table(table, tmp_path / "p.parquet")
    for path in (
        write(tmp_path / "p.jsonl", lines),
        write(tmp_path / "p.jsonl.gz", gzip.compress(lines.encode())),
        str(tmp_path / "p.parquet"),
    ):
        assert documents(corpus(path, seeds)) == rows


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path, seeds: str):
    path = write(tmp_path / "book.txt", "\ufeff\none\r\ntwo \r\n\r\n \t\n\nthree\n")
    assert documents(corpus(path, seeds)) == [("one\ntwo ", "book.txt"), ("three", "book.txt")]


def test_a_directory_stands_for_its_files_in_order(tmp_path: Path, seeds: str):
    for name in ("b.jsonl", "a/z.txt", "c.md"):
        write(tmp_path / "pool" / name, line(f"from {name}") if name != "a/z.txt" else "from z")
    found = [text for text, _ in documents(corpus(str(tmp_path / "pool"), seeds))]
    assert found == ["from z", "from b.jsonl"]


def test_blank_lines_are_skipped_and_a_missing_source_is_the_files_name(tmp_path: Path, seeds: str):
    content = (
        "\n" + line("x") + "  \n" + '{"text": "y", "source": null}\n{"text": "z", "source": 7}'
    )
    path = write(tmp_path / "p.jsonl", content)
    assert documents(corpus(path, seeds)) == [("x", "p.jsonl"), ("y", "p.jsonl"), ("z", "7")]


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_a_text_of_null_is_an_empty_document(name: str, tmp_path: Path, seeds: str):
    rows = [{"text": "x"}, {"text": None}, {"text": "y"}]
    if name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write(tmp_path / name, "\n".join(map(json.dumps, rows)))
    found = documents(corpus(str(tmp_path / name), seeds))
    assert [text for text, _ in found] == ["x", "", "y"]


def test_an_empty_file_among_many_is_passed_over_and_named(
    tmp_path: Path, seeds: str, caplog: pytest.LogCaptureFixture
):
    write(tmp_path / "pool/1.jsonl", line("x"))
    write(tmp_path / "pool/2.jsonl", "")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "pool/3.parquet")
    write(tmp_path / "pool/4.jsonl", line("y"))
    found = documents(corpus(str(tmp_path / "pool"), seeds))
    assert [text for text, _ in found] == ["x", "y"]
    assert [Path(m.split()[0]).name for m in caplog.messages] == ["2.jsonl", "3.parquet"]


def test_a_pool_with_gaps_is_read_and_one_of_nothing_else_is_refused(
    tmp_path: Path, seeds: str, read
):
    write(tmp_path / "pool/1.jsonl", line("of the first file") + '{"text": null}\n')
    write(tmp_path / "pool/2.jsonl", "")
    write(tmp_path / "pool/3.jsonl", line("of the third file"))
    general = write(tmp_path / "general.jsonl", line("a test"))
    found = read(corpus(str(tmp_path / "pool"), seeds, general_test=general))
    assert list(found.pool.texts()) == ["of the first file", "of the third file"]
    assert found.artifact.manifest["num_short_or_long"] == 1
    for name, content in (("1", '{"text": null}\n'), ("3", "")):
        write(tmp_path / f"pool/{name}.jsonl", content)
    with pytest.raises(ValueError, match=r"'pool' has no document of at least 1 characters"):
        read(corpus(str(tmp_path / "pool"), seeds, general_test=general))


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path, seeds: str):
    path = write(tmp_path / "p.jsonl", line("one\u2028still one\x85still"))
    assert documents(corpus(path, seeds))[0][0] == "one\u2028still one\x85still"


GOOD = line("fine")
BROKEN = {
    "malformed JSON": (
        "p.jsonl",
        GOOD + '{"text": "cut',
        r"p\.jsonl, line 2: not JSON .*'\{\"text\": \"cut'",
    ),
    "not an object": ("p.jsonl", GOOD + '["text"]', r"line 2: a line must be an object .* list"),
    "no text field": (
        "p.jsonl",
        GOOD + '\n{"body": "x", "txt": 1}',
        r"line 3: no field 'text'; it has 'body', 'txt': set corpus\.text_field=txt",
    ),
    "text not a string": ("p.jsonl", '{"text": 5}', r"line 1: 'text' must be a string, got a int"),
    "invalid UTF-8": (
        "p.jsonl",
        GOOD.encode() + b'{"text": "caf\xe9"}',
        r"line 2: not UTF-8 \(byte 0xe9",
    ),
    "half a surrogate pair": (
        "p.jsonl",
        '{"text": "\\ud83d"}',
        r"line 1: half of a surrogate pair \(\\ud83d\)",
    ),
    "invalid UTF-8 text": ("p.txt", b"one\n\xff\xfe", r"p\.txt, line 2: not UTF-8"),
    "truncated gzip": (
        "p.jsonl.gz",
        gzip.compress((GOOD * 9999).encode())[:-20],
        r"cannot be read beyond line \d+",
    ),
    "not gzip": ("p.jsonl.gz", GOOD, r"cannot be read beyond line 0: Not a gzipped file"),
    "empty": ("p.jsonl", "", r"p\.jsonl is empty"),
    "only blank lines": ("p.txt", "\n \n", r"p\.txt is empty"),
    "not parquet": ("p.parquet", "text", r"p\.parquet: not a readable parquet file"),
    "deeply nested": ("p.jsonl", "[" * 200_000, r"line 1: not JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_gives_one_error_that_says_where(case: str, tmp_path: Path, seeds: str):
    name, content, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        documents(corpus(write(tmp_path / name, content), seeds))


def test_a_parquet_file_without_the_text_column_names_its_columns(tmp_path: Path, seeds: str):
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"no field 'text'; it has 'content': .*=content"):
        documents(corpus(str(tmp_path / "p.parquet"), seeds))


def test_a_missing_file_lists_the_near_names(tmp_path: Path, seeds: str):
    write(tmp_path / "pool_v2.jsonl.gz", b"")
    with pytest.raises(ValueError, match=r"corpus\.pool: there is no .*holds pool_v2\.jsonl\.gz"):
        corpus(str(tmp_path / "pool.jsonl.gz"), seeds).identity()
    with pytest.raises(ValueError, match="there is no folder"):
        corpus(str(tmp_path / "nowhere/pool.jsonl"), seeds).identity()


def test_an_unknown_suffix_and_an_empty_folder_list_what_is_read(tmp_path: Path, seeds: str):
    (tmp_path / "empty").mkdir()
    for path in (write(tmp_path / "p.json", "[]"), str(tmp_path / "empty")):
        with pytest.raises(ValueError, match=r"\.jsonl, \.jsonl\.gz, \.txt, \.parquet"):
            corpus(path, seeds).identity()


def test_moved_files_are_the_same_content_and_changed_bytes_are_not(tmp_path: Path, seeds: str):
    pool = write(tmp_path / "here/pool.jsonl", line("a") + line("b"))
    moved = shutil.copytree(tmp_path / "here", tmp_path / "there") / "pool.jsonl"

    def hashed(path: str, **changes) -> str:
        files = corpus(path, seeds, **changes)
        return content_hash({"corpus": files, "identity": files.identity()})

    assert hashed(pool) == hashed(str(moved))
    assert hashed(pool) != hashed(pool, text_field="body")
    write(moved, line("a") + line("c"))
    assert hashed(pool) != hashed(str(moved))


def test_missing_tests_are_held_out_by_hash_and_disjoint_from_the_rest(
    tmp_path: Path, seeds: str, read
):
    pool = [line(f"pool text {i}", source="topic.x" if i % 2 else "web") for i in range(300)]
    # Near copies of the seeds in the pool must neither enter the general test nor stay.
    pool += [line(f"SEED  number {i}") for i in range(20)]
    paths = write(tmp_path / "pool.jsonl", "".join(pool)), seeds
    found = read(corpus(*paths, subdomain_source="topic"))
    held_out = set(found.texts("general_test"))
    assert 20 < len(held_out) < 70  # about 0.3 of the 150 outside the subdomain
    assert {source for _, source in found.documents("general_test")} == {"web"}
    assert held_out.isdisjoint(found.texts("pool"))
    assert len(found.texts("seeds")) + len(found.texts("subdomain_test")) == 20
    assert len(found.pool) + len(held_out) == 300

    shuffled = write(tmp_path / "again.jsonl", "".join(reversed(pool))), seeds
    again = read(corpus(*shuffled, subdomain_source="topic"))
    assert set(again.texts("general_test")) == held_out


def test_given_test_files_are_used_as_they_are(tmp_path: Path, seeds: str, read):
    pool = write(tmp_path / "pool.txt", "\n\n".join(f"pool {i}" for i in range(30)))
    tests = {
        "subdomain_test": write(tmp_path / "sub.txt", "sub one\n\nsub two"),
        "general_test": [
            write(tmp_path / "g1.txt", "gen one"),
            write(tmp_path / "g2.txt", "pool 3"),
        ],
    }
    found = read(corpus(pool, seeds, **tests))
    assert sorted(found.texts("subdomain_test")) == ["sub one", "sub two"]
    assert sorted(found.texts("general_test")) == ["gen one", "pool 3"]
    assert len(found.texts("seeds")) == 20
    assert len(found.pool) == 29


def test_too_few_seeds_to_hold_some_out_is_explained(tmp_path: Path):
    pool = write(tmp_path / "pool.txt", "one\n\ntwo")
    only = write(tmp_path / "seed.txt", "a single seed")
    with pytest.raises(ValueError, match=r"corpus\.subdomain_test=FILE"):
        corpus(pool, only).own_documents()


@pytest.mark.parametrize("wrong", [{"test_share": 0.0}, {"general_test_share": 1.0}])
def test_shares_out_of_range_are_refused_with_the_override(wrong: dict):
    with pytest.raises(ValueError, match=r"set corpus\."):
        corpus("p", "s", **wrong)
