import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from ssae.index import build
from ssae.index.build import build_index
from ssae.index.search import FILE, open_index

faiss = pytest.importorskip("faiss")
KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")
NUM = 6000


class Built:
    def __init__(self, folder, settings, vectors):
        self.folder, self.vectors = folder, vectors
        self.manifest = build_index(settings, vectors, folder)
        json.dumps(self.manifest)

    def open(self):
        return open_index(self.folder, self.manifest, self.vectors)


@pytest.fixture(scope="module")
def made(tmp_path_factory, settings, array, draw):
    vectors = array(draw(NUM))
    return {
        kind: Built(tmp_path_factory.mktemp(kind), settings(kind=kind), vectors) for kind in KINDS
    }


def brute_force(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    similarities = queries.astype(np.float64) @ rows.astype(np.float64).T
    similarities[:, ~rows.any(axis=1)] = -np.inf
    return -np.sort(-similarities, axis=1)[:, :k]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_near_and_its_similarities_are_those_of_numpy(made, kind, draw):
    built, queries = made[kind], draw(300, seed=5, zero_every=301)
    similarities, ids = built.open().search(queries, 10)
    assert similarities.dtype == np.float32
    assert ids.dtype == np.int64
    own = np.einsum("qd,qkd->qk", queries, built.vectors.array[ids])
    np.testing.assert_allclose(similarities, own, atol=2e-6)
    assert np.all(np.diff(similarities) <= 1e-6)
    assert all(len(set(row)) == 10 for row in ids.tolist())
    exact = brute_force(queries, built.vectors.array, 10)
    recall = np.mean(similarities >= exact[:, -1:] - 2e-6)
    assert recall >= (1 if kind == "flat" else 0.93)
    # These queries are others than those that measured it.
    assert recall == pytest.approx(built.manifest["recall"], abs=0.03)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_recall_of_the_manifest_is_that_of_its_queries(made, kind, settings):
    built, rows = made[kind], made[kind].vectors.array
    nlist = 256 if kind.startswith("ivf") else 0
    drawn = np.random.default_rng(settings().seed).choice(
        NUM, min(NUM, 400 + 64 * nlist), replace=False
    )
    queries = np.sort(drawn[:400])
    queries = queries[rows[queries].any(axis=1)]
    measuring = queries[len(queries) // 2 :]
    rest = rows.copy()
    rest[queries] = 0  # were not in the index yet
    exact = brute_force(rows[measuring], rest, 10)
    # Now they are: search for more, and leave them out.
    _, ids = built.open().search(rows[measuring], 60)
    found = [[i for i in found if i not in set(queries)][:10] for found in ids.tolist()]
    similarities = np.einsum("qd,qkd->qk", rows[measuring], rows[np.array(found)])
    recall = np.mean(similarities >= exact[:, -1:] - 2e-6)
    if kind == "ivf_flat":  # the same lists are read; the others find more if they look for more
        assert built.manifest["recall"] == pytest.approx(recall, abs=1e-9)
    assert 0.95 <= built.manifest["recall"] <= recall + 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_documents_without_content_are_never_found(made, kind):
    built = made[kind]
    known = built.vectors.array.any(axis=1)
    assert built.manifest["num_indexed"] == known.sum()
    queries = -built.vectors.array[:5]
    _, ids = built.open().search(queries, NUM)
    assert known[ids[ids >= 0]].all()


@pytest.mark.parametrize("kind", KINDS)
def test_where_there_are_fewer_documents_the_rest_is_minus_one(made, kind):
    similarities, ids = made[kind].open().search(made[kind].vectors.array[:3], NUM + 50)
    assert similarities.shape == ids.shape == (3, NUM + 50)
    assert np.array_equal(ids < 0, np.isneginf(similarities))
    assert (ids[:, -50:] == -1).all()
    assert (ids[:, :10] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused(made, kind, tmp_path):
    built = made[kind]
    content = (built.folder / FILE).read_bytes()
    damaged = [content[:-1], content[: len(content) // 2], content[:10], b"", content + b"x"]
    for place in np.linspace(0, len(content) - 1, 25).astype(int):
        damaged.append(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    for bad in damaged:
        (tmp_path / FILE).write_bytes(bad)
        with pytest.raises(ValueError, match="damaged.*rm -r"):
            open_index(tmp_path, built.manifest, built.vectors)
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match="missing"):
        open_index(tmp_path, built.manifest, built.vectors)
    assert built.open().kind == kind


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_of_a_huge_file_all_but_the_lists_is_checked_and_a_damaged_list_ends_nothing(
    kind, tmp_path, settings, array, draw, monkeypatch
):
    monkeypatch.setattr(build, "WHOLE_BYTES", 0)
    vectors = array(draw(3000, dim=8))
    built = Built(tmp_path, settings(kind=kind), vectors)
    checked, path = built.manifest["checked_bytes"], tmp_path / FILE
    content = path.read_bytes()
    assert 0 < checked < len(content)
    for place in np.linspace(0, checked - 1, 25).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            built.open()
    noise = np.random.default_rng(0).bytes(len(content) - checked)
    path.write_bytes(content[:checked] + noise)
    with pytest.raises(ValueError, match="names documents that the pool does not have"):
        built.open().search(vectors.array[:50], 10)


def test_other_vectors_than_the_indexed_ones_are_refused(made, array, draw):
    built = made["ivf_flat"]
    for other in (draw(NUM, dim=8), draw(NUM - 1)):
        with pytest.raises(ValueError, match="another retriever.embedder"):
            open_index(built.folder, built.manifest, array(other))
    for queries in (np.ones((2, 15)), np.ones(16)):
        with pytest.raises(ValueError, match=r"queries must be \(num_queries, 16\)"):
            built.open().search(queries, 3)
    with pytest.raises(ValueError, match="k=0"):
        built.open().search(np.ones((2, 16)), 0)


@pytest.fixture
def one_thread():
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_file(kind, tmp_path, settings, array, draw):
    vectors, folders = array(draw(2000, dim=8)), [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (Built(folder, settings(kind=kind), vectors) for folder in folders)
    assert first.manifest == second.manifest
    assert (folders[0] / FILE).read_bytes() == (folders[1] / FILE).read_bytes()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_pq"])
def test_where_faiss_has_a_gpu_it_searches_there(
    kind, tmp_path, settings, array, draw, monkeypatch
):
    vectors, copied = array(draw(2000, dim=8)), []
    on_cpu = Built(tmp_path, settings(kind=kind), vectors)

    def copy(resources, device, index):
        copied.append(type(index).__name__)
        return faiss.clone_index(index)

    # A stand-in: the calls are those of a GPU, the sums are not.
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy, raising=False)
    (tmp_path / "gpu").mkdir()
    on_gpu = Built(tmp_path / "gpu", settings(kind=kind), vectors)
    assert on_gpu.manifest == on_cpu.manifest
    assert (tmp_path / FILE).read_bytes() == (tmp_path / "gpu" / FILE).read_bytes()
    index = on_gpu.open()
    assert len(copied) == 1
    for k in (10, 2500):  # more than a GPU can
        assert np.array_equal(
            index.search(vectors.array[:9], k).ids, on_cpu.open().search(vectors.array[:9], k).ids
        )


def test_vectors_without_clusters_are_said_to_be(tmp_path, settings, array, caplog):
    rows = np.random.default_rng(0).normal(size=(4000, 24))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with caplog.at_level(logging.WARNING):
        built = Built(tmp_path, settings(kind="ivf_flat"), array(rows))
    assert built.manifest["recall"] >= 0.95
    assert "retriever.index.kind=flat may be as fast" in caplog.text


def test_a_recall_out_of_reach_is_said_with_the_remedy(tmp_path, settings, array, caplog):
    rows = np.random.default_rng(0).normal(size=(8000, 32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with caplog.at_level(logging.WARNING):
        built = Built(tmp_path, settings(kind="ivf_pq", pq_bytes=1), array(rows))
    assert built.manifest["recall"] < 0.95
    assert "set retriever.index.pq_bytes=2 or retriever.index.kind=ivf_flat" in caplog.text


@pytest.mark.parametrize("kind", KINDS[1:])
def test_too_small_a_pool_is_refused(kind, tmp_path, settings, array, draw):
    for rows in (draw(9)[:3], np.zeros((2000, 16))):
        with pytest.raises(ValueError, match="set retriever.index.kind=flat"):
            build_index(settings(kind=kind), array(rows), tmp_path)


def test_a_pool_without_content_has_a_flat_index_that_finds_nothing(tmp_path, settings, array):
    built = Built(tmp_path, settings(), array(np.zeros((20, 16))))
    similarities, ids = built.open().search(np.ones((2, 16)), 5)
    assert (ids == -1).all()
    assert np.isneginf(similarities).all()


def test_a_search_for_more_than_recall_was_measured_at_is_warned_of(made, caplog):
    with caplog.at_level(logging.WARNING):
        made["ivf_flat"].open().search(made["ivf_flat"].vectors.array[:1], 11)
    assert "set retriever.index.recall_at=11" in caplog.text


MAPPED = """
import json, re, sys
from pathlib import Path
import faiss
from ssae.index.search import open_index

class Vectors:
    dim = 128
    def __len__(self):
        return 20_000

def anonymous():
    [kb] = re.findall(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(kb) * 1024

manifest = json.loads(Path(sys.argv[1], "manifest").read_text())
before = anonymous()
index = open_index(Path(sys.argv[1]), manifest, Vectors())
print(anonymous() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_flat"])
def test_an_open_index_is_mapped_not_read(kind, tmp_path, settings, array, draw):
    built = Built(tmp_path, settings(kind=kind, recall_at=2), array(draw(20_000, dim=128)))
    assert built.manifest["index_bytes"] > 9_000_000
    (tmp_path / "manifest").write_text(json.dumps(built.manifest))
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4_000_000
