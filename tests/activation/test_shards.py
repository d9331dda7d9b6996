import json
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ssae.activation import reader
from ssae.activation.reader import Activations
from ssae.activation.shards import Checksum, Tokens, is_intact, read_finished, shard_bytes
from ssae.activation.writer import ShardWriter
from ssae.artifact.store import Artifact


def origins(tokens: Tokens) -> torch.Tensor:
    return torch.stack(tokens[1:], dim=1)


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
    assert size < 20 * (4 * 2 + 4 * 4) + 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_activation_is_refused_by_its_document_and_position(
    tmp_path, random_tokens, value
):
    tokens = random_tokens(40)
    tokens.activations[23, 2] = value
    writer = ShardWriter(tmp_path, "some.layer", 30, 4, torch.float32)
    writer.start(7, 1000, 30)
    writer.write(tokens.activations[10:], origins(tokens)[10:], slice(0, 30))
    where = "some.layer, shard 7, first in the row of document 2 at position 3 "
    where += f"(token id {tokens.token_ids[23]}); "
    expected = re.escape(where) + ".*float32 already"
    with pytest.raises(ValueError, match=expected):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_shards_do_not_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"torch.float64.*set language_model.dtype=float32"):
        ShardWriter(tmp_path, "some.layer", 30, 4, torch.float64)


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


def test_few_shards_are_open_at_a_time(write_tokens, random_tokens, monkeypatch):
    tokens, activations = write_tokens(random_tokens(60), 5)
    monkeypatch.setattr(reader, "OPEN_SHARDS", 2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        indices = torch.randint(60, (30,), generator=generator)
        assert_same(activations.rows(indices), Tokens(*(column[indices] for column in tokens)))
        assert len(activations._files) <= 2


def test_a_process_that_is_sent_activations_opens_the_files_itself(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(500, d_in=64), 100)
    activations.slice(0, 500)
    sent = pickle.dumps(activations)
    assert len(sent) < 20_000 < tokens.activations.nbytes
    assert_same(pickle.loads(sent).slice(0, 500), tokens)


def test_any_safetensors_reader_reads_a_shard(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(25), 10)
    for number, size in enumerate([10, 10, 5]):
        path = activations.artifact.path / f"shard_{number:05d}.safetensors"
        assert path.stat().st_size == shard_bytes(size, 4, torch.float32)
        shard, part = load_file(path), slice(10 * number, 10 * number + size)
        assert torch.equal(shard["activations"], tokens.activations[part])
        assert torch.equal(shard["origins"][:, :3], origins(tokens)[part])


@pytest.mark.parametrize(
    ("dtype", "d_in"), [(torch.float32, 4), (torch.bfloat16, 4), (torch.float16, 3)]
)
def test_checksums_are_the_sums_of_their_definition(write_tokens, random_tokens, dtype, d_in):
    tokens, activations = write_tokens(random_tokens(20, d_in, dtype), 8)
    shard = load_file(activations.artifact.path / "shard_00001.safetensors")
    checksum = Checksum(d_in, dtype)
    a, b = checksum.of_words.tolist(), checksum.of_origin.tolist()
    assert all(factor % 2 for factor in a + b)
    assert len(set(a + b)) == len(a + b)
    words = shard["activations"].view(checksum.words).tolist()
    for row, index in enumerate(range(8, 16)):
        *where, found = shard["origins"][row].tolist()
        total = sum(x * y for x, y in zip(a, words[row], strict=True))
        total += sum(x * y for x, y in zip(b, [*where, index], strict=True))
        assert (total - found) % 2**32 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_in_which_a_shard_is_filled_changes_no_token(tmp_path, random_tokens, dtype):
    tokens = random_tokens(40, dtype=dtype)
    contents = []
    for name in ("in_order", "scattered"):
        (tmp_path / name).mkdir()
        writer = ShardWriter(tmp_path / name, "some.layer", 40, 4, dtype)
        writer.start(0, 100, 40)
        if name == "in_order":
            writer.write(tokens.activations, origins(tokens), slice(0, 40))
        else:
            for places in torch.randperm(40, generator=torch.manual_seed(0)).split(9):
                writer.write(tokens.activations[places], origins(tokens)[places], places)
        writer.finish()
        writer.close()
        assert is_intact(tmp_path / name, 0)
        contents.append((tmp_path / name / "shard_00000.safetensors").read_bytes())
    assert contents[0] == contents[1]


def read_everything(activations: Activations) -> tuple[torch.Tensor, ...]:
    everything = torch.arange(len(activations))
    return (
        *activations.slice(0, len(activations)),
        *activations.rows(everything.flip(0)),
        activations.mean,
        activations.token_counts,
        torch.tensor([activations.variance, activations.mean_norm, activations.d_in]),
    )


def test_a_flipped_bit_in_any_byte_of_any_file_is_named_or_harmless(write_tokens, random_tokens):
    tokens = random_tokens(9)
    tokens = tokens._replace(token_ids=tokens.token_ids % 5)
    artifact = write_tokens(tokens, 5, vocab_size=5).activations.artifact
    expected = read_everything(Activations(Artifact(artifact.path, "harvest")))
    guarded = {"shard_00000.safetensors", "shard_00001.safetensors", "statistics.safetensors"}
    guarded |= {"manifest.json", "DONE"}
    for path in sorted(artifact.path.iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            found, message = None, ""
            try:
                found = read_everything(Activations(Artifact(artifact.path, "harvest")))
            except ValueError as error:
                message = str(error)
            if found is None:
                assert ("manifest.json" if path.name == "DONE" else path.name) in message
                assert f"mv {artifact.path} {artifact.partial}" in message
            else:
                assert path.name not in guarded, position
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        path.write_bytes(content)


def test_a_damaged_token_is_named_with_where_it_comes_from(write_tokens, random_tokens):
    activations = write_tokens(random_tokens(95), 40).activations
    path = activations.artifact.path / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-4 * 4 * 8 - 1] ^= 1  # the 9th token from its end: 40 + 31
    path.write_bytes(content)
    expected = r"shard_00001.safetensors, token 31 \(document 7, position 1\): not what .*mv "
    with pytest.raises(ValueError, match=expected):
        activations.rows(torch.tensor([3, 71, 90]))
    with pytest.raises(ValueError, match=expected):
        activations.slice(60, 95)
    activations.rows(torch.tensor([3, 70, 90]))  # the others are whole
    assert activations.where(94) == "shard_00002.safetensors, token 14 (document 9, position 4)"


@pytest.mark.parametrize("damage", ["swapped", "truncated", "longer", "missing"])
def test_a_shard_in_the_wrong_place_or_size_is_refused(write_tokens, random_tokens, damage):
    artifact = write_tokens(random_tokens(20), 10).activations.artifact
    first, second = (artifact.path / f"shard_{i:05d}.safetensors" for i in range(2))
    contents = first.read_bytes(), second.read_bytes()
    match damage:
        case "swapped":
            first.write_bytes(contents[1])
            second.write_bytes(contents[0])
        case "truncated":
            first.write_bytes(contents[0][:-1])
        case "longer":
            first.write_bytes(contents[0] + b"0")
        case "missing":
            first.unlink()
    with pytest.raises(ValueError, match=r"damaged \(shard_00000.*mv "):
        Activations(artifact).slice(0, 20)


def test_a_disk_that_is_full_is_one_error_and_leaves_finished_shards(tmp_path, random_tokens):
    tokens = random_tokens(60, d_in=64)
    writer = ShardWriter(tmp_path, "some.layer", 50, 64, torch.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))  # 10 tokens fit, 50 do not
        for number, part in enumerate((slice(0, 10), slice(10, 60))):
            size = part.stop - part.start
            writer.start(number, part.start, size)
            writer.write(tokens.activations[part], origins(tokens)[part], slice(0, size))
            writer.finish()
        with pytest.raises(ValueError, match=r"cannot write .*shard_00001.*set artifacts="):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shard_00000.json", "shard_00000.safetensors",
    ]  # fmt: skip
    assert is_intact(tmp_path, 0)
    assert not is_intact(tmp_path, 1)


@pytest.mark.parametrize("damaged", ["shard_00000.json", "shard_00000.safetensors"])
def test_a_shard_of_an_interrupted_harvest_is_intact_only_byte_for_byte(
    tmp_path, random_tokens, damaged
):
    tokens = random_tokens(4)
    writer = ShardWriter(tmp_path, "some.layer", 4, 4, torch.float32)
    writer.start(0, 0, 4)
    writer.write(tokens.activations, origins(tokens), slice(0, 4))
    writer.finish()
    writer.close()
    finished = read_finished(tmp_path, 0)
    assert finished is not None
    assert finished.num_tokens == 4
    assert torch.equal(finished.sums.x, tokens.activations.double().sum(0))
    content = (tmp_path / damaged).read_bytes()
    assert is_intact(tmp_path, 0)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (tmp_path / damaged).write_bytes(changed)
        if is_intact(tmp_path, 0):  # e.g. a blank between two values of the .json
            assert json.loads(changed) == json.loads(content), position
    (tmp_path / damaged).unlink()
    assert not is_intact(tmp_path, 0)


READ = """
import sys
from pathlib import Path
import torch
from ssae.activation import reader
from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact

def resident():
    return 4 * int(Path("/proc/self/statm").read_text().split()[1])

for path in sys.argv[1:]:
    activations = Activations(Artifact(Path(path), "harvest"))
    sizes = []
    for start in range(0, len(activations), 1000):
        activations.rows(torch.arange(start, start + 1000))
        sizes.append(resident())
    print(max(sizes) - sizes[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_harvest(write_tokens, random_tokens):
    small, large = (
        str(write_tokens(random_tokens(num_tokens, 256), 2000).activations.artifact.path)
        for num_tokens in (4000, 40_000)
    )
    done = subprocess.run(
        [sys.executable, "-c", READ, small, large],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    growth = [int(line) for line in done.stdout.split()]  # kB
    assert growth[1] < growth[0] + 4096  # of 41 MB
