"""The pool read in blocks, against the same files read at once."""

import dataclasses
import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ssae.corpus.base import load_split, short_fingerprint
from ssae.corpus.docstrings import Docstrings
from ssae.corpus.files import Files
from ssae.corpus.hub import Hub
from ssae.pool import blocks, catalogue
from ssae.pool.pool import Pool

Row = tuple[str, str]


def texts_of(kind: str, num: int) -> list[Row]:
    dice = random.Random(kind)
    words = ["alpha", "Beta", "caf\u00e9", "\u5206\u5e03", "x"]
    return [
        (f"{kind} {i} {' '.join(dice.choices(words, k=dice.randint(1, 30)))}", f"{kind}.{i % 7}")
        for i in range(num)
    ]


def write(path: Path, rows: list[Row]) -> None:
    lines = "".join(json.dumps({"text": text, "source": source}) + "\n" for text, source in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(text for text, _ in rows))
    else:
        table = pyarrow.table({"source": [s for _, s in rows], "text": [t for t, _ in rows]})
        pyarrow.parquet.write_table(table, path, row_group_size=7)


@dataclasses.dataclass
class Case:
    """A corpus, and the documents of its pool in order."""

    corpus: Files | Hub | Docstrings
    pool: list[Row]


@pytest.fixture
def seeds(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("seeds", "subdomain_test", "general_test"):
        write(folder / f"{split}.jsonl", texts_of(split, 3))
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def files(tmp_path: Path, seeds: dict[str, str]) -> Callable[..., Case]:
    """Return a function that writes a pool of files."""

    def make(*suffixes: str, num: int = 40, **changes) -> Case:
        folder, rows = tmp_path / "pool", []
        folder.mkdir()
        for number, suffix in enumerate(suffixes):
            name = f"{number}{suffix}"
            own = texts_of(name, num)
            write(folder / name, own)
            rows += [(text, name if suffix == ".txt" else source) for text, source in own]
        values = {
            "min_characters": 1, "max_characters": None, "subdomain_source": None,
            "test_share": 0.5, "general_test_share": 0.5, "text_field": "text",
            "source_field": "source", "num_workers": 0,
        }  # fmt: skip
        return Case(Files(pool=str(folder), **seeds, **values | changes), rows)

    return make


@pytest.fixture
def hub(tmp_path: Path, seeds: dict[str, str]) -> Callable[..., Case]:
    """Return a function that writes a local dataset of several parquet files."""

    def make(num_documents: int | None) -> Case:
        folder, rows = tmp_path / "dataset", []
        for number in range(3):
            own = texts_of(f"hub{number}", 25)
            folder.mkdir(exist_ok=True)
            write(folder / f"train-{number:05d}-of-00003.parquet", own)
            rows += own
        labelled = {"split": "train", "text_field": "text", "source_field": "source"}
        splits = {}
        for name, path in seeds.items():
            own = tmp_path / f"{name}_folder"
            own.mkdir()
            Path(path).rename(own / "train.jsonl")
            splits[name] = {"path": str(own), **labelled}
        pool = {"path": str(folder), "num_documents": num_documents, **labelled}
        corpus = Hub(
            min_characters=1, max_characters=None, subdomain_source=None, num_workers=0,
            pool=pool, **splits,
        )  # fmt: skip
        return Case(corpus, rows[:num_documents])

    return make


@pytest.fixture
def docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Case]:
    """Return a function that writes a package and the corpus of its docstrings."""

    def make() -> Case:
        rows = []
        for module in ("a", "b", "c", "d"):
            own = [text for text, _ in texts_of(module, 30)]
            lines = [f'def f{i}(): """{text}"""' for i, text in enumerate(own)]
            folder = tmp_path / "made_package"
            folder.mkdir(exist_ok=True)
            (folder / f"{module}.py").write_text("\n".join(lines), encoding="utf-8")
            rows += [(text, f"made_package.{module}.f{i}") for i, text in enumerate(own)]
        (tmp_path / "made_package" / "__init__.py").touch()
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        corpus = Docstrings(
            min_characters=1, max_characters=None, subdomain_source="made_package.b",
            packages=["made_package"], seeds_source="made_package.a", test_share=0.5,
            general_test_share=0.2, num_workers=0,
        )  # fmt: skip
        splits = [(corpus.split_of({"text": t, "source": s}), (t, s)) for t, s in rows]
        return Case(corpus, [row for split, row in splits if split == "pool"])

    return make


CASES = {
    "jsonl": lambda f, h, d: f(".jsonl", ".jsonl"),
    "jsonl.gz": lambda f, h, d: f(".jsonl.gz", ".jsonl.gz"),
    "txt": lambda f, h, d: f(".txt", ".txt"),
    "parquet": lambda f, h, d: f(".parquet", ".parquet"),
    "mixed": lambda f, h, d: f(".jsonl", ".txt", ".parquet", ".jsonl.gz"),
    "hub": lambda f, h, d: h(None),
    "hub, one stream": lambda f, h, d: h(60),
    "docstrings": lambda f, h, d: d(),
}


@pytest.mark.parametrize("name", CASES)
def test_texts_and_sources_are_those_of_a_plain_reading(
    name: str, files, hub, docstrings, read, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 8)
    case = CASES[name](files, hub, docstrings)
    pool = read(case.corpus).pool
    assert list(zip(pool.texts(), pool.sources(), strict=True)) == case.pool
    assert len(pool.block_slices) > 6
    dice = np.random.default_rng(0)
    ids = dice.integers(len(pool), size=3 * len(pool))
    ids = np.concatenate([ids, ids[:5], [0, len(pool) - 1]])
    assert pool.fetch(ids) == [case.pool[i][0] for i in ids]
    assert pool.sources(ids) == [case.pool[i][1] for i in ids]
    assert pool.fetch([]) == []
    expected = [short_fingerprint(text) for text, _ in case.pool]
    assert pool.column("fingerprint").tolist() == expected
    assert pool.column("num_characters").tolist() == [len(text) for text, _ in case.pool]
    kept = list(pool.artifact.path.glob("blocks/*.parquet"))
    assert bool(kept) == (name == "docstrings")


def test_rows_blocks_and_offsets_say_where_a_document_lies(
    listed, read, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    first = ["one", "x", "two", "ONE", "three", "seed one", "four"]  # x: short, ONE: again
    found = read(listed(first, [], ["two", "five", "y", "z", "six"])).pool
    assert list(found.texts()) == ["one", "two", "three", "four", "five", "six"]
    places = [found.column(name).tolist() for name in ("part", "block", "offset", "row")]
    assert list(zip(*places, strict=True)) == [
        (0, 0, 0, 0), (0, 0, 1, 2), (0, 1, 1, 4), (0, 2, 0, 6), (2, 0, 1, 1), (2, 1, 0, 4),
    ]  # fmt: skip
    manifest = found.artifact.manifest
    counts = {name: manifest[name] for name in manifest if name.startswith("num_")}
    assert counts == {"num_held_back": 1, "num_repeats": 2, "num_short_or_long": 3}
    slices = [(key, (s.start, s.stop)) for key, s in found.block_slices]
    assert slices == [
        ((0, 0), (0, 2)), ((0, 1), (2, 3)), ((0, 2), (3, 4)), ((2, 0), (4, 5)), ((2, 1), (5, 6)),
    ]  # fmt: skip


@pytest.mark.parametrize("num", [3, 4, 6])
def test_a_part_ends_in_a_block_of_its_own_size(listed, read, monkeypatch, num: int):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 3)
    texts = [f"text {i}" for i in range(num)]
    assert list(read(listed(texts, [], texts[:1] + ["other"])).pool.texts()) == [*texts, "other"]


def test_documents_held_out_of_the_pools_text_are_those_of_the_split(docstrings, read, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 8)
    case = docstrings()
    found = read(case.corpus)
    every = [d for part in case.corpus.parts() for d in part.documents()]
    assert len(every) == 120
    for split in ("seeds", "subdomain_test", "general_test"):
        expected = {(d["text"], d["source"]) for d in every if case.corpus.split_of(d) == split}
        assert len(expected) > 3
        assert set(found.documents(split)) == expected


@pytest.mark.parametrize("num", [20, 1000])
def test_the_sample_is_the_documents_of_the_lowest_fingerprints(listed, read, monkeypatch, num):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 16)
    monkeypatch.setattr(catalogue, "SAMPLE", num)
    texts = [f"document {i}" for i in range(900)]
    found = read(listed(texts[:600], texts[500:]))  # a hundred twice
    lowest = sorted(texts, key=short_fingerprint)[:num]
    assert load_split(found.artifact, "sample")["text"][:] == lowest


def test_few_documents_are_kept_for_the_sample(listed, read, monkeypatch):
    monkeypatch.setattr(catalogue, "SAMPLE", 5)
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 50)
    kept, write = [], catalogue.CatalogueWriter._write

    def recording(self, kind, block, table):
        kept.extend(table["text"].to_pylist() if kind == "sampled" else [])
        write(self, kind, block, table)

    monkeypatch.setattr(catalogue.CatalogueWriter, "_write", recording)
    read(listed([f"document {i}" for i in range(5000)]))
    # 10 (1 + 1/2 + 1/3 + ... + 1/100) = 52 are expected.
    assert 20 < len(kept) < 120


def test_labels_are_those_of_the_sources(files, read):
    case = files(".jsonl", ".jsonl", subdomain_source="0.jsonl.3")
    truth = read(case.corpus).pool.in_subdomain()
    assert truth.tolist() == [source == "0.jsonl.3" for _, source in case.pool]
    assert read(dataclasses.replace(case.corpus, subdomain_source=None)).pool.in_subdomain() is None


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".txt"])
@pytest.mark.parametrize("change", ["another", "fewer", "order", "none"])
def test_a_file_that_changed_after_it_was_read_is_named(files, read, suffix, change):
    case = files(suffix, suffix)
    found = read(case.corpus)
    rows = case.pool[40:]
    changed = {
        "another": [*rows[:5], ("another text", "x"), *rows[6:]],
        "fewer": rows[:20],
        "order": [*rows[:20], *rows[:19:-1]],
        "none": [],
    }[change]
    file = Path(str(case.corpus.pool)) / f"1{suffix}"
    write(file, changed) if changed else file.unlink()
    pool = Pool(found.artifact, found.study.corpus)
    assert pool.fetch([3, 1]) == [case.pool[3][0], case.pool[1][0]]
    message = rf"part 1 of corpus\.pool has changed since it was read.*rm -r {found.artifact.path}"
    with pytest.raises(ValueError, match=message):
        pool.fetch([45, 41, 65])
    with pytest.raises(ValueError, match=message):
        list(pool.texts())


def test_parts_read_by_several_processes_give_the_same_files(files, read, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 8)
    case = files(".jsonl", ".txt", ".parquet", ".jsonl.gz", ".jsonl")
    digests = []
    for num_workers in (0, 2):
        corpus = dataclasses.replace(case.corpus, num_workers=num_workers)
        digests.append(read(corpus, tmp_path / str(num_workers)).artifact.manifest["files"])
    assert digests[0] == digests[1]
    assert "catalogue.arrow" in digests[0]


@pytest.mark.parametrize(("num_documents", "num_workers"), [(None, 2), (None, 1), (60, 1)])
def test_worker_processes_read_all_of_a_stream(hub, read, num_documents, num_workers):
    """A stream of datasets would give each worker its share of the files only."""
    case = hub(num_documents)
    found = read(dataclasses.replace(case.corpus, num_workers=num_workers))
    assert list(found.pool.texts()) == [text for text, _ in case.pool]
