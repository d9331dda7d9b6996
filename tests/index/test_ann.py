import pytest

from ssae.index.ann import num_lists


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lsh"}, "retriever.index.kind=auto"),
        ({"exact_below": -1}, "retriever.index.exact_below=1000000"),
        ({"exact_below": 1e6}, "retriever.index.exact_below=1000000"),
        ({"compress_above": 10}, "retriever.index.compress_above=10000"),
        ({"min_recall": 0.0}, "retriever.index.min_recall=0.95"),
        ({"min_recall": 1.01}, "retriever.index.min_recall=0.95"),
        ({"recall_at": 0}, "retriever.index.recall_at=100"),
        ({"pq_bytes": 0}, "retriever.index.pq_bytes=64"),
        ({"seed": 2**31}, "retriever.index.seed=0"),
        ({"seed": "x"}, "retriever.index.seed"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_override_to_type(settings, change, message):
    with pytest.raises(ValueError, match=message):
        settings(**change)


@pytest.mark.parametrize(
    ("num_vectors", "kind"),
    [(0, "flat"), (999, "flat"), (1000, "ivf_flat"), (100_000, "ivf_flat"), (100_001, "ivf_pq")],
)
def test_auto_depends_on_the_number_of_vectors(settings, num_vectors, kind):
    assert settings().resolve(num_vectors) == kind
    assert settings(kind="hnsw").resolve(num_vectors) == "hnsw"


def test_a_compressed_vector_has_as_many_bytes_as_divide_its_dimension(settings):
    assert [settings(pq_bytes=64).code_bytes(dim) for dim in (384, 768, 300, 32, 7)] == [
        64, 64, 60, 32, 7,
    ]  # fmt: skip


def test_lists_grow_with_the_root_of_the_vectors_and_no_further_than_65536():
    assert [num_lists(num) for num in (0, 100, 10_000, 10**6, 10**9)] == [4, 32, 512, 4096, 65536]
