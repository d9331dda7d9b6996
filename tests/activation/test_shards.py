import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.activation.shards import Activations, ShardWriter, Tokens


def assert_same(found: Tokens, expected: Tokens) -> None:
    for name, a, b in zip(Tokens._fields, found, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("shard_tokens", [1, 7, 10, 99, 100, 101, 1000])
def test_what_is_read_is_what_was_written_however_it_falls_into_shards(
    write_tokens, random_tokens, shard_tokens
):
    tokens, activations = write_tokens(random_tokens(100), shard_tokens)
    assert len(activations) == 100
    assert_same(activations.slice(0, 100), tokens)
    assert_same(activations.rows(torch.arange(100)), tokens)


def test_shards_hold_shard_tokens_each_and_the_last_one_the_rest(write_tokens, random_tokens):
    _, activations = write_tokens(random_tokens(25), 10)
    assert activations.artifact.manifest["shard_sizes"] == [10, 10, 5]
    names = [path.name for path in sorted(activations.artifact.path.glob("shard_*"))]
    assert names == [f"shard_{i:05d}.safetensors" for i in range(3)]


def test_rows_in_any_order_equal_plain_indexing(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(60), 17)

    @settings(max_examples=50, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, 59), max_size=80))
    def check(chosen):
        indices = torch.tensor(chosen, dtype=torch.int64)
        assert_same(activations.rows(indices), Tokens(*(column[indices] for column in tokens)))

    check()


def test_slices_cross_shard_ends_and_stop_at_the_last_token(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(30), 7)
    for start in range(30):
        for stop in (*range(start + 1, 31), 1000):
            found = activations.slice(start, stop)
            assert_same(found, Tokens(*(column[start:stop] for column in tokens)))


def test_statistics_are_those_of_numpy_in_float64(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(333, d_in=5), 100)
    x = tokens.activations.double().numpy()
    mean = x.mean(0)
    assert activations.mean.dtype == torch.float64
    np.testing.assert_allclose(activations.mean.numpy(), mean, rtol=1e-12)
    variance = np.square(x - mean).sum(1).mean()
    assert activations.variance == pytest.approx(variance, rel=1e-12)
    assert activations.mean_norm == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-12)
    counts = np.bincount(tokens.token_ids.numpy(), minlength=50)
    assert activations.token_counts.tolist() == counts.tolist()
    assert (activations.d_in, activations.num_tokens) == (5, 333)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_came_and_statistics_are_of_the_stored_values(
    write_tokens, random_tokens, dtype
):
    tokens, activations = write_tokens(random_tokens(50, dtype=dtype), 20)
    assert activations.slice(0, 50).activations.dtype == dtype
    assert_same(activations.slice(0, 50), tokens)
    assert activations.artifact.manifest["dtype"] == str(dtype).removeprefix("torch.")
    expected = tokens.activations.double().mean(0)
    assert torch.allclose(activations.mean, expected, rtol=1e-12, atol=0)
    size = (activations.artifact.path / "shard_00000.safetensors").stat().st_size
    assert size < 20 * (4 * 2 + 3 * 4) + 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_activation_is_refused_by_its_document_and_position(
    tmp_path, random_tokens, value
):
    tokens = random_tokens(40)
    tokens.activations[23, 2] = value
    writer = ShardWriter(tmp_path, 10, 50)
    with pytest.raises(ValueError, match=r"document 2 at position 3; .*dtype=float32"):
        writer.write(tokens)


def test_nothing_to_write_is_refused(tmp_path, random_tokens):
    writer = ShardWriter(tmp_path, 10, 50)
    with pytest.raises(ValueError, match="hold no token"):
        writer.close()
    writer.write(random_tokens(0))
    with pytest.raises(ValueError, match="hold no token"):
        writer.close()


def test_writing_copies_so_that_the_caller_may_reuse_its_tensors(write_tokens, random_tokens):
    tokens = random_tokens(5)
    kept = Tokens(*(column.clone() for column in tokens))
    activations = write_tokens(tokens, 100).activations
    tokens.activations.zero_()
    assert_same(activations.slice(0, 5), kept)


def test_an_artifact_can_be_opened_twice(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(15), 4)
    again = Activations(activations.artifact)
    assert_same(again.rows(torch.arange(15)), tokens)
