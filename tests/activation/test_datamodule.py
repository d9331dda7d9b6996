import logging
import subprocess
import sys
import threading
import types

import pytest
import torch

from ssae.activation.datamodule import ActivationDataModule, Shards, ShardSource
from ssae.activation.order import WindowOrder

WINDOW, BLOCK = 16, 4


def shards(read_ahead: bool = False) -> Shards:
    return Shards(window_tokens=WINDOW, block_tokens=BLOCK, read_ahead=read_ahead)


def make_module(
    activations, *, rank=0, size=1, first=0, batch_size=12, num_steps=9, read_ahead=False
):
    source = ShardSource(activations, shards(read_ahead), batch_size=batch_size, seed=3)
    module = ActivationDataModule(source, num_steps)
    module.trainer = types.SimpleNamespace(  # pyright: ignore
        world_size=size, global_rank=rank, global_step=first,
        strategy=types.SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return module


def batches(activations, **settings):
    return list(make_module(activations, **settings).train_dataloader())


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for name in a._fields:
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture
def activations(write_tokens, random_tokens):
    return write_tokens(random_tokens(50), 20).activations


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_slices_of_all_ranks_in_order_are_the_batch_of_one_rank(activations, size):
    ranks = [batches(activations, rank=rank, size=size) for rank in range(size)]
    joined = [
        type(parts[0])(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        for parts in zip(*ranks, strict=True)
    ]
    assert_equal(joined, batches(activations))


def test_batches_are_the_tokens_that_the_order_names(write_tokens, random_tokens):
    tokens, activations = write_tokens(random_tokens(50), 20)
    order = WindowOrder(50, 12, 3, WINDOW, BLOCK)
    for step, batch in enumerate(batches(activations)):
        indices = order.indices(step)
        for found, expected in zip(batch, tokens, strict=True):
            assert torch.equal(found, expected[indices])


def test_a_resumed_run_gets_the_batches_that_are_left(activations):
    assert_equal(batches(activations, first=4), batches(activations)[4:])


def test_reading_ahead_gives_the_same_batches_and_leaves_no_thread(activations):
    before = threading.active_count(), torch.get_num_threads()
    for settings in ({}, {"first": 3, "rank": 1, "size": 2}):
        module = make_module(activations, read_ahead=True, **settings)
        assert_equal(list(module.train_dataloader()), batches(activations, **settings))
        assert threading.active_count() == before[0] + 1
        module.source.close()
        assert (threading.active_count(), torch.get_num_threads()) == before


def test_what_is_wrong_with_a_window_that_is_read_ahead_is_said_when_it_is_needed(activations):
    path = activations.artifact.path / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    module = make_module(activations, read_ahead=True)
    with pytest.raises(ValueError, match=r"shard_00001.safetensors, token 19 .*not what was"):
        list(module.train_dataloader())
    module.source.close()


def test_a_row_of_a_rank_is_found_again_in_the_files(activations):
    for rank in range(2):
        module = make_module(activations, rank=rank, size=2)
        for step, batch in enumerate(batches(activations, rank=rank, size=2)):
            for row in range(6):
                document, position = int(batch.document_ids[row]), int(batch.positions[row])
                where = module.where(step, row)
                assert f"document {document}, position {position}" in where
                assert f"shard_{(10 * document + position) // 20:05d}" in where


@pytest.mark.parametrize("size", [1, 2])
def test_a_window_is_read_once_and_holds_the_tokens_of_the_rank(activations, monkeypatch, size):
    read = []
    rows = activations.ordered_rows
    monkeypatch.setattr(
        activations, "ordered_rows", lambda indices: read.append(indices) or rows(indices)
    )
    source = ShardSource(activations, shards(), batch_size=4, seed=3)
    for step in range(25):  # two epochs of four windows each: 12, 12, 12 and 14 tokens
        source.batch(step, 0, size)
    assert len(read) == 8
    assert max(map(len, read)) <= 14 / size + 2
    if size == 1:
        assert torch.cat(read).bincount().tolist() == [2] * 50


@pytest.mark.parametrize(
    ("window_tokens", "read_ahead", "said"),
    [
        (500, False, "an_arm: windows of 500 tokens, 0.0002 GB in memory"),
        (
            500,
            True,
            "an_arm: windows of 500 tokens, 0.0002 GB in memory, and as much for the next one",
        ),
        (5000, True, "an_arm: windows of 1,000 tokens, 0.0004 GB in memory"),
    ],
)
def test_what_a_window_takes_of_memory_is_logged_once(
    write_tokens, random_tokens, caplog, window_tokens, read_ahead, said
):
    # 500 tokens of 95 float32 activations and 5 words beside them: 200,000 bytes
    activations = write_tokens(random_tokens(1000, d_in=95), 300).activations
    settings = Shards(window_tokens=window_tokens, block_tokens=10, read_ahead=read_ahead)
    training = types.SimpleNamespace(batch_size_tokens=50)
    caplog.set_level(logging.INFO)
    study = types.SimpleNamespace(training=training, seed=0)
    source = settings.source(study, "an_arm", activations)
    for step in range(25):
        source.batch(step, 0, 1)
    source.close()
    assert caplog.messages == [said]


def test_ranks_that_cannot_share_a_batch_evenly_are_refused_with_a_size_that_works(activations):
    with pytest.raises(ValueError, match=r"\(10\).*\(4\); set training.batch_size_tokens=8"):
        batches(activations, size=4, batch_size=10)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"block_tokens": 17}, r"between 1 and activation.window_tokens \(16\), got 17.*tokens=16"),
        ({"block_tokens": 0}, "got 0; set activation.block_tokens=16"),
        ({"read_ahead": 2}, "read_ahead must be null, true or false, got 2"),
        ({"window_tokens": 1.5}, "activation.window_tokens must be a whole number, got 1.5"),
    ],
)
def test_settings_that_make_no_order_are_refused(settings, rule):
    with pytest.raises(ValueError, match=rule):
        Shards(**({"window_tokens": WINDOW, "block_tokens": BLOCK, "read_ahead": None} | settings))


READ = """
import sys
from pathlib import Path
from ssae.activation.datamodule import Shards, ShardSource
from ssae.activation.reader import Activations
from ssae.artifact.store import Artifact

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

activations = Activations(Artifact(Path(sys.argv[1]), "harvest"))
settings = Shards(window_tokens=4096, block_tokens=64, read_ahead=False)
source = ShardSource(activations, settings, batch_size=512, seed=0)
source.batch(0, 0, 1)
before, most = resident(), 0
for step in range(1, len(activations) // 512):
    source.batch(step, 0, 1)
    most = max(most, resident())
print(most - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_shards(write_tokens, random_tokens):
    d_in, grown = 512, []
    for num_shards in (2, 12):
        tokens = random_tokens(num_shards * 4096, d_in)
        folder = write_tokens(tokens, 4096).activations.artifact.path
        done = subprocess.run(
            [sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=True
        )
        grown.append(int(done.stdout))
    window_bytes = 4096 * 4 * d_in
    assert max(grown) < 2.5 * window_bytes  # 12 shards hold 12 windows
