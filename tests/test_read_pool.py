"""One pass over the pool: interrupted and continued, shared by processes and ranks."""

import dataclasses
import functools
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import pytest

from ssae.artifact import store
from ssae.artifact.store import Artifact
from ssae.corpus.files import Files
from ssae.embedder.base import Embedder
from ssae.embedder.subject import SubjectEmbedder
from ssae.embedder.tfidf import TfidfSVD
from ssae.index.ann import Index
from ssae.pool import blocks, catalogue
from ssae.pool.catalogue import CatalogueWriter
from ssae.pool.embeddings import EmbeddingWriter
from ssae.read_pool import embed, read_corpus
from ssae.retriever.base import Retriever
from ssae.retriever.dense import Dense
from ssae.score import score
from ssae.study import Study

NUM_PARTS, NUM_DOCUMENTS = 3, 20
NUM_BLOCKS = NUM_PARTS * 4  # of 6, the last of each part with 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Letters(Embedder):
    """Counts letters; nothing is fitted."""

    letters: str = "abcdefgh"

    def open(self, folder):
        return lambda texts: np.array(
            [[text.count(letter) + 0.1 for letter in self.letters] for text in texts], np.float32
        )


def dense(embedder: Embedder) -> Dense:
    index = Index(
        kind="auto", exact_below=10**6, compress_above=10**7, min_recall=0.95, recall_at=10,
        pq_bytes=8, seed=0,
    )  # fmt: skip
    return Dense(
        nearest_seeds=1, subtract_centre=True, embedder=embedder, index=index, candidates_per_seed=9
    )


def with_retriever(study: Study, retriever: Retriever) -> Study:
    arm = dataclasses.replace(study.arms[study.arm], retriever=retriever)
    return dataclasses.replace(study, arms=study.arms | {study.arm: arm})


@pytest.fixture
def corpus(listed, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 6)
    dice = random.Random(0)
    parts = [
        [f"{part}.{i} " + "".join(dice.choices("abcdefgh ", k=30)) for i in range(NUM_DOCUMENTS)]
        for part in range(NUM_PARTS)
    ]
    return listed(*parts)


@pytest.fixture
def passes(corpus, monkeypatch) -> Counter:
    """How often each part is read, by its first document."""
    counts, part = Counter(), type(corpus.parts()[0])
    documents = part.documents

    def counting(self):
        if len(self.rows) == NUM_DOCUMENTS:  # not the splits
            counts[self.rows[0][0][0]] += 1
        return documents(self)

    monkeypatch.setattr(part, "documents", counting)
    return counts


ONCE = {str(part): 1 for part in range(NUM_PARTS)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def made(study: Study) -> dict[str, Artifact]:
    paths = [path.parent for path in study.artifacts.glob("*/*/DONE")]
    return {path.parent.name: Artifact(path, path.parent.name) for path in paths}


def test_corpus_and_embeddings_are_made_in_one_pass(corpus, make_study, tmp_path, passes):
    study = with_retriever(make_study(tmp_path, corpus=corpus), dense(Letters()))
    read_corpus(study)
    assert passes == ONCE
    assert set(made(study)) == {"corpus", "embed"}
    embed(study, Letters())
    score(study, study.arms[study.arm].retriever)
    assert passes == ONCE
    embed(study, Letters(letters="abc"))  # another embedder, another pass
    assert passes == {part: 2 for part in ONCE}


def test_a_fitted_embedder_takes_a_pass_after_the_corpus(corpus, make_study, tmp_path, passes):
    tfidf = TfidfSVD(dim=2, max_features=100, min_df=1, max_df=1.0, sample_documents=1000, seed=0)
    study = with_retriever(make_study(tmp_path, corpus=corpus), dense(tfidf))
    read_corpus(study)
    assert passes == ONCE
    assert set(made(study)) == {"corpus"}
    embed(study, tfidf)
    assert passes == {part: 3 for part in ONCE}  # what it is fitted on, and what it embeds


class Stopped(Exception):
    """Raised by the tests."""


def stop_after(num: int, writer: type, monkeypatch) -> None:
    write, written = writer.write, []

    def stopping(self, block):
        if len(written) == num:
            raise Stopped
        written.append(block.name)
        write(self, block)

    monkeypatch.setattr(writer, "write", stopping)


@pytest.mark.parametrize("writer", [CatalogueWriter, EmbeddingWriter])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_pass_reads_what_is_missing_and_ends_as_if_it_had_not_been(
    corpus, make_study, tmp_path, monkeypatch, passes, writer, num_workers
):
    corpus = dataclasses.replace(corpus, num_workers=num_workers)
    whole, study = (
        with_retriever(make_study(tmp_path / name, corpus=corpus), dense(Letters()))
        for name in ("whole", "parts")
    )
    read_corpus(whole)
    for num in (0, 5, 2):
        with monkeypatch.context() as patch:
            stop_after(num, writer, patch)
            with pytest.raises(Stopped):
                read_corpus(study)
    assert not made(study)
    there = {
        kind: {path.stem for path in study.artifacts.glob(f"{kind}/*.partial/**/0*.*")}
        for kind in ("corpus", "embed")
    }
    assert sorted(map(len, there.values())) == [7, 8 if writer is EmbeddingWriter else 7]
    written = {CatalogueWriter: [], EmbeddingWriter: []}
    for kind, names in written.items():
        write = kind.write

        def recording(self, block, write=write, names=names):
            names.append(block.name)
            write(self, block)

        monkeypatch.setattr(kind, "write", recording)
    passes.clear()
    read_corpus(study)
    for kind, name in ((CatalogueWriter, "corpus"), (EmbeddingWriter, "embed")):
        assert len(written[kind]) == NUM_BLOCKS - len(there[name])
        assert there[name].isdisjoint(written[kind])
    if num_workers == 0:
        assert passes == {"1": 1, "2": 1}  # the first part was whole
    expected = made(whole)
    for kind, artifact in made(study).items():
        assert artifact.hash == expected[kind].hash
        assert artifact.manifest == expected[kind].manifest
        assert contents(artifact.path) == contents(expected[kind].path)


def removing(unlink: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return shutil.rmtree, file by file."""

    def rmtree(folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            unlink(file)
        folder.rmdir()

    return rmtree


@pytest.mark.parametrize("keeps_text", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, NUM_BLOCKS - 1, NUM_BLOCKS, NUM_BLOCKS + 2])
def test_a_corpus_that_is_killed_while_it_is_sealed_ends_as_if_it_had_not_been(
    corpus, make_study, tmp_path, monkeypatch, keeps_text, num_steps
):
    class HeldOut(type(corpus)):
        """Every tenth document of the pool's text is a test."""

        def split_of(self, document):
            return "general_test" if "3 " in document["text"][:4] else "pool"

    HeldOut.keeps_text = keeps_text
    corpus = HeldOut(**vars(corpus))
    whole, study = (make_study(tmp_path / name, corpus=corpus) for name in ("whole", "killed"))
    expected = read_corpus(whole)
    assert expected.manifest["general_test"]["num_documents"] > 1
    steps = []

    def stopping(work):
        def step(*args):
            if len(steps) == (0 if keeps_text else num_steps):
                raise Stopped
            steps.append(work)
            return work(*args)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(catalogue.shutil, "rmtree", removing(stopping(Path.unlink)))
        patch.setattr(store, "write_manifest", stopping(store.write_manifest))
        with pytest.raises(Stopped):
            read_corpus(study)
    found = read_corpus(study)
    assert found.manifest == expected.manifest
    assert contents(found.path) == contents(expected.path)


def write_files(folder: Path, num_files: int) -> None:
    dice = random.Random(num_files)
    words = ["mean", "variance", "normal", "gamma", "poisson", "file", "string", "caf\u00e9"]
    folder.mkdir()
    for number in range(num_files):
        rows = [
            {"text": f"{number}.{i} " + " ".join(dice.choices(words, k=dice.randint(1, 20)))}
            for i in range(30)
        ]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def of_files(corpus_files, make_study, tmp_path):
    """Return a function that gives a study of so many files, in a folder of its own."""

    def make(num_files: int, name: str, num_workers: int = 0) -> Study:
        pool = tmp_path / f"{num_files}_files"
        if not pool.exists():
            write_files(pool, num_files)
        files = Files(
            **corpus_files | {"pool": str(pool)}, min_characters=1, max_characters=None,
            subdomain_source=None, test_share=0.5, general_test_share=0.5, text_field="text",
            source_field="source", num_workers=num_workers,
        )  # fmt: skip
        study = make_study(tmp_path / name, corpus=files)
        embedder = SubjectEmbedder(
            language_model=study.language_model, hookpoint="auto", max_length=32,
            batch_size_tokens=200,
        )  # fmt: skip
        return with_retriever(study, dense(embedder))

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_line_is_one_line_of_error_whoever_reads_it(of_files, tmp_path, num_workers):
    study = of_files(4, "broken", num_workers)
    with (tmp_path / "4_files" / "2.jsonl").open("a") as file:
        file.write("\n{not json")
    with pytest.raises(ValueError, match=r"2\.jsonl, line 31: not JSON") as error:
        read_corpus(study)
    assert len(str(error.value).splitlines()) == 1
    assert not made(study)


RANK = """
import pickle, sys
from pathlib import Path
import torch
from ssae.pool import blocks
from ssae.read_pool import read_corpus
from ssae.score import score

torch.set_num_threads(1)
blocks.BLOCK_DOCUMENTS = 7
study = pickle.loads(Path(sys.argv[1]).read_bytes())
read_corpus(study)
score(study, study.arms[study.arm].retriever)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("num_files", "num_workers"), [(5, 0), (5, 2), (1, 0)])
def test_two_ranks_make_the_bytes_that_one_rank_makes(
    of_files, torchrun, tmp_path, monkeypatch, num_files, num_workers
):
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 7)
    one, two = (of_files(num_files, name, num_workers) for name in ("one", "two"))
    score(one, one.arms[one.arm].retriever)
    trainer = functools.partial(
        lightning.Trainer, accelerator="cpu", devices=2, precision="32-true"
    )
    two = dataclasses.replace(two, trainer=trainer)
    (tmp_path / "study.pickle").write_bytes(pickle.dumps(two))
    (tmp_path / "rank.py").write_text(RANK)
    done = torchrun(2, tmp_path / "rank.py", str(tmp_path / "study.pickle"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(made(two)) == {"corpus", "embed", "centre", "score"}
    expected = made(one)
    for verb, artifact in made(two).items():
        assert artifact.hash == expected[verb].hash
        assert contents(artifact.path) == contents(expected[verb].path)


def test_other_seeds_and_tests_keep_the_embeddings_of_the_pool(make_study, tmp_path):
    study = make_study(tmp_path)
    embedder = SubjectEmbedder(
        language_model=study.language_model, hookpoint="auto", max_length=32,
        batch_size_tokens=512,
    )  # fmt: skip
    swapped = {"seeds": study.corpus.subdomain_test, "subdomain_test": study.corpus.seeds}
    other = dataclasses.replace(study, corpus=dataclasses.replace(study.corpus, **swapped))
    first, second = embed(study, embedder), embed(other, embedder)
    assert read_corpus(study).hash != read_corpus(other).hash
    assert first.path == second.path
    shorter = dataclasses.replace(study.corpus, max_characters=230)
    assert embed(dataclasses.replace(study, corpus=shorter), embedder).path != first.path


def test_seeds_are_looked_at_before_the_pool_is_read(make_study, tmp_path, monkeypatch):
    study = make_study(tmp_path)
    seeds = tmp_path / "short.jsonl"
    seeds.write_text('{"text": "x"}\n')
    corpus = dataclasses.replace(study.corpus, seeds=str(seeds), min_characters=3)
    monkeypatch.setattr(type(corpus), "parts", lambda self: pytest.fail("read the pool"))
    with pytest.raises(ValueError, match="split 'seeds' has no document of at least 3 characters"):
        read_corpus(dataclasses.replace(study, corpus=corpus))
