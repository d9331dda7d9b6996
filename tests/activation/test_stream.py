import gc
import itertools
import re
import threading
import time
import types
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from ssae.activation.order import Permutation, mixed
from ssae.activation.ring import Slot
from ssae.activation.shards import Tokens
from ssae.activation.stream import Stream, StreamSource, worker_for

HOOKPOINT = "gpt_neox.layers.1"
LANES, BATCH, WINDOW = 4, 24, 200


def texts(num: int = 40) -> list[str]:
    words = ["the", "mean", "of", "a", "random", "vector", "returns", "gamma"]
    return [" ".join(words[(i * j) % 8] for j in range(1, 3 + (7 * i) % 23)) for i in range(num)]


@pytest.fixture(params=["packed", "documents"])
def rows(request, make_rows, neox):
    return make_rows(neox, texts(), 16, packing=request.param)


@pytest.fixture
def packed(make_rows, neox):
    return make_rows(neox, texts(), 16)


@pytest.fixture
def make_source(neox):
    """Return a function that opens a stream; all are closed in the end."""
    sources = []

    def make(rows, lm=neox, *, lm_threads=0, seed=5, batch_size=BATCH, **changes):
        settings = {"window_tokens": WINDOW, "lanes": LANES, "calibration_tokens": 100} | changes
        settings = Stream(lm_threads=lm_threads, **settings)
        source = StreamSource(
            rows, lm, HOOKPOINT, settings, batch_size=batch_size, lm_batch_tokens=64, seed=seed
        )
        sources.append(source)
        return source

    yield make
    for source in sources:
        source.close()


def read(source, steps, rank=0, size=1) -> list[Tokens]:
    return [source.batch(step, rank, size) for step in steps]


def join(batches: list[Tokens]) -> Tokens:
    return Tokens(*(torch.cat(columns) for columns in zip(*batches, strict=True)))


def assert_same_bits(found: list[Tokens], expected: list[Tokens]) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        for name in a._fields:
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def tokens_of_row(rows, lm, row: int) -> list[tuple[int, int, int, torch.Tensor]]:
    """(token id, document, position, activation) of the text of one row, read alone."""
    batch = rows.batch(np.array([row]))
    x = lm.capture(batch.input_ids, HOOKPOINT)[0]
    special = set(lm.special_ids.tolist())
    return [
        (token, document, position, x[position])
        for position, (token, document) in enumerate(
            zip(batch.input_ids[0].tolist(), batch.document_ids[0].tolist(), strict=True)
        )
        if token not in special
    ]


def lane_by_hand(rows, lm, lane: int, num_lanes: int, window_tokens: int, seed: int, epochs: int):
    """The tokens of a lane, one after the other, by the rule that lanes.py documents."""
    sequence = []
    for epoch in range(epochs):
        order = Permutation(rows.num_rows, mixed(seed, epoch))(np.arange(rows.num_rows)).tolist()
        own = order[lane::num_lanes]
        total = sum(int(rows.text_tokens[row]) for row in own)
        num_windows = -(-total // (window_tokens // num_lanes))
        groups, so_far = [[]], 0
        for row in own:
            groups[-1].append(row)
            so_far += int(rows.text_tokens[row])
            if len(groups) < num_windows and so_far >= total * len(groups) // num_windows:
                groups.append([])
        for number, group in enumerate(groups):
            tokens = [token for row in sorted(group) for token in tokens_of_row(rows, lm, row)]
            generator = torch.Generator()
            generator.manual_seed(mixed(seed, epoch, 1 + lane + num_lanes * number))
            places = torch.randperm(len(tokens), generator=generator).tolist()
            shuffled = [None] * len(tokens)
            for place, token in zip(places, tokens, strict=True):
                shuffled[place] = token
            sequence += shuffled
    return sequence


def test_batches_are_what_rows_read_one_by_one_and_shuffled_by_the_rule_give(
    rows, neox, make_source
):
    epochs = 2
    lanes = [lane_by_hand(rows, neox, lane, LANES, WINDOW, 5, epochs) for lane in range(LANES)]
    share = BATCH // LANES
    num_steps = min(map(len, lanes)) // share
    assert num_steps > 20
    for step, batch in enumerate(read(make_source(rows), range(num_steps))):
        expected = [t for lane in lanes for t in lane[step * share : (step + 1) * share]]
        found = zip(batch.token_ids.tolist(), batch.document_ids.tolist(),
                    batch.positions.tolist(), strict=True)  # fmt: skip
        assert list(found) == [token[:3] for token in expected]
        torch.testing.assert_close(
            batch.activations, torch.stack([token[3] for token in expected]), rtol=1e-4, atol=1e-5
        )


def test_every_token_of_text_is_read_once_an_epoch(rows, neox, make_source):
    """Lane by lane: its first tokens are its first epoch, and all lanes' make all text."""
    every = {
        (document, row, position)
        for row in range(rows.num_rows)
        for _, document, position, _ in tokens_of_row(rows, neox, row)
    }
    num_steps = 2 * rows.num_tokens // BATCH + 4
    share = BATCH // LANES
    batches = read(make_source(rows), range(num_steps))
    sequences = [
        join([Tokens(*(c[lane * share : (lane + 1) * share] for c in b)) for b in batches])
        for lane in range(LANES)
    ]
    for epoch in range(2):
        used = []
        for lane, sequence in enumerate(sequences):
            sizes = []
            for e in range(2):
                order = Permutation(rows.num_rows, mixed(5, e))
                own = order(np.arange(lane, rows.num_rows, LANES))
                sizes.append(int(rows.text_tokens[own].sum()))
            first = sum(sizes[:epoch])
            part = slice(first, first + sizes[epoch])
            used += zip(sequence.token_ids[part].tolist(), sequence.document_ids[part].tolist(),
                        sequence.positions[part].tolist(), strict=True)  # fmt: skip
        expected = [t[:3] for row in range(rows.num_rows) for t in tokens_of_row(rows, neox, row)]
        assert sorted(used) == sorted(expected)
    assert len(every) == rows.num_tokens


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_make_the_batches_of_one_rank(rows, make_source, size):
    steps = range(30)
    ranks = [read(make_source(rows), steps, rank, size) for rank in range(size)]
    joined = [join(list(parts)) for parts in zip(*ranks, strict=True)]
    assert_same_bits(joined, read(make_source(rows), steps))


@pytest.mark.parametrize("lm_threads", [0, 1])
def test_any_step_can_be_the_first_to_the_bit(rows, make_source, lm_threads):
    num_steps = 3 * rows.num_tokens // BATCH  # three epochs
    whole = read(make_source(rows), range(num_steps))
    for first in (1, 7, 8, 9, num_steps // 2, num_steps - 2):
        steps = range(first, min(first + 9, num_steps))
        source = make_source(rows, lm_threads=lm_threads)
        assert_same_bits(read(source, steps), whole[first : steps.stop])
        assert_same_bits(read(source, [3]), [whole[3]])  # and back again
        source.close()


def test_a_thread_changes_nothing_whoever_is_faster(packed, neox, make_source):
    steps = range(40)
    expected = read(make_source(packed), steps)
    for lm, pause in ((neox, 0), (slowed(neox, 0.002), 0), (neox, 0.002)):
        source, found = make_source(packed, lm, lm_threads=2), []
        for step in steps:
            time.sleep(pause)
            found.append(source.batch(step, 0, 1))
        source.close()  # a model reads one text at a time
        assert_same_bits(found, expected)


def test_what_was_read_stays_as_it_was(packed, make_source):
    source = make_source(packed, lm_threads=1)
    batches = read(source, range(60))
    source.close()
    assert_same_bits(batches, read(make_source(packed), range(60)))


def test_windows_smaller_than_a_share_of_a_batch_and_larger_than_an_epoch(packed, make_source):
    for window_tokens in (LANES, 10**6):
        whole = read(make_source(packed, window_tokens=window_tokens), range(25))
        source = make_source(packed, window_tokens=window_tokens, lm_threads=1)
        rest = read(source, range(13, 25))
        source.close()
        assert_same_bits(rest, whole[13:])
        documents = {int(d) for d in join(whole[:5]).document_ids}
        assert len(documents) > 4


def test_another_seed_reads_other_text(packed, make_source):
    first, other = (read(make_source(packed, seed=seed), [0])[0] for seed in (5, 6))
    assert not torch.equal(first.document_ids, other.document_ids)


def test_a_row_of_a_batch_is_found_again(packed, make_source):
    source = make_source(packed)
    [batch] = read(source, [4], rank=1, size=2)
    for row in (0, 7):
        document, position = int(batch.document_ids[row]), int(batch.positions[row])
        assert source.where(4, 1, 2, row) == f"document {document}, position {position}"


def test_the_ring_holds_two_windows_a_lane_however_long_it_runs(packed, make_source):
    gc.collect()
    source = make_source(packed, lm_threads=1)
    read(source, range(2))
    slots = [s for s in gc.get_objects() if type(s) is Slot]
    assert len(slots) == 2 * LANES
    limit = WINDOW // LANES + 16
    read(source, range(2, 3 * packed.num_tokens // BATCH))
    again = [s for s in gc.get_objects() if type(s) is Slot]
    assert set(map(id, again)) == set(map(id, slots))
    for slot in slots:
        assert slot.activations is not None
        assert slot.activations.shape == (slot.capacity, 16)
        assert slot.capacity <= limit
    del slots, again, slot
    source.close()
    gc.collect()
    assert not [s for s in gc.get_objects() if type(s) is Slot]


def lm_threads_alive() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("activations")]


def changed(lm, read) -> types.SimpleNamespace:
    """A model whose `read` is another."""
    return types.SimpleNamespace(device_used="cpu", read=read)


def slowed(lm, seconds: float):
    def read(*args):
        time.sleep(seconds)
        return lm.read(*args)

    return changed(lm, read)


def test_the_thread_ends_with_the_stream_and_training_gets_its_threads_back(packed, make_source):
    before = torch.get_num_threads()
    source = make_source(packed, lm_threads=1)
    read(source, range(3))
    assert len(lm_threads_alive()) == 1
    source.close()
    assert not lm_threads_alive()
    assert torch.get_num_threads() == before
    source.close()  # twice does no harm
    assert len(read(source, [3])[0].token_ids) == BATCH  # it can be opened again


def test_training_and_the_language_model_share_the_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        worker = worker_for(torch.device("cpu"), 1)
        seen = []
        worker.submit(lambda stop: seen.append(torch.get_num_threads()))()
        assert seen == [1]
        assert torch.get_num_threads() == 2
        worker.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_closing_does_not_wait_for_the_window_that_is_being_written(packed, neox, make_source):
    started, go_on, cancelled, calls = *(threading.Event() for _ in range(3)), []

    def read_slowly(*args):
        calls.append(args)
        started.set()
        go_on.wait(10)
        return neox.read(*args)

    source = make_source(packed, changed(neox, read_slowly), lm_threads=1, window_tokens=4000)

    def read_first():
        with pytest.raises(CancelledError):
            source.batch(0, 0, 1)
        cancelled.set()

    reader = threading.Thread(target=read_first)
    reader.start()
    assert started.wait(10)
    worker = source._worker
    closing = threading.Thread(target=source.close)
    closing.start()
    assert worker._stop.wait(10)
    go_on.set()
    closing.join(10)
    reader.join(10)
    assert not closing.is_alive()
    assert cancelled.wait(10)  # and no batch of half a window
    assert len(calls) == 1  # of the many batches of eight windows
    assert not lm_threads_alive()


@pytest.mark.parametrize("lm_threads", [0, 1])
def test_what_goes_wrong_in_the_language_model_is_raised_in_training(
    packed, neox, make_source, lm_threads
):
    count = itertools.count()

    def read_some(*args):
        if next(count) == 9:
            raise RuntimeError("the GPU fell off the bus")
        return neox.read(*args)

    source = make_source(packed, changed(neox, read_some), lm_threads=lm_threads)
    with pytest.raises(RuntimeError, match="fell off the bus"):
        read(source, range(100))
    source.close()
    assert not lm_threads_alive()


@pytest.mark.parametrize("lm_threads", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_named(packed, neox, make_source, lm_threads, value):
    count = itertools.count()
    bad: list[torch.Tensor] = []

    def poisoned(input_ids, hookpoints, fn, mask):
        def poison(x):
            x = fn(x).clone()
            if next(count) == 5:
                x[7, 3] = value
                bad.append(input_ids)
            return x

        return neox.read(input_ids, hookpoints, poison, mask)

    source = make_source(packed, changed(neox, poisoned), lm_threads=lm_threads)
    with pytest.raises(ValueError, match="non-finite activation at gpt_neox.layers.1") as error:
        read(source, range(100))
    text = ~torch.isin(bad[0], neox.special_ids)
    position = int(text.nonzero()[7][1])
    assert f"position {position} (token id {bad[0][text][7]});" in str(error.value)
    row = next(r for r in range(packed.num_rows)
               if torch.equal(packed.batch(np.array([r])).input_ids[0],
                              bad[0][int(text.nonzero()[7][0])]))  # fmt: skip
    document = int(packed.batch(np.array([row])).document_ids[0, position])
    assert f"document {document} at" in str(error.value)
    assert re.search(r"layers\.1, tokens [\d,]+ to [\d,]+ of its stream", str(error.value))


def test_lanes_that_do_not_divide_a_batch_or_the_ranks_or_exceed_the_rows_are_refused(
    packed, make_source
):
    with pytest.raises(
        ValueError, match=r"lanes \(5\) must divide .*\(24\); set activation.lanes=4$"
    ):
        make_source(packed, lanes=5)
    with pytest.raises(
        ValueError, match=r"ranks \(3\) must divide activation.lanes \(4\); set .*=3"
    ):
        make_source(packed).check_ranks(3)
    with pytest.raises(
        ValueError, match=r"\(24\) must be a multiple .* ranks \(5\); set .*=20 .*=5"
    ):
        make_source(packed).check_ranks(5)
    many = 8 * packed.num_rows
    with pytest.raises(
        ValueError, match=rf"must not exceed the rows of text .*set activation.lanes={many // 8} "
    ):
        make_source(packed, lanes=many, window_tokens=10**6, batch_size=many)


@pytest.mark.parametrize("lanes", [5, 7, 9, 11])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_lanes_that_a_message_names_are_taken(packed, make_source, lanes, size):
    def named(call) -> int:
        with pytest.raises(ValueError, match=r"activation\.lanes=\d+$") as error:
            call()
        return int(str(error.value).rpartition("=")[2])

    dividing = named(lambda: make_source(packed, lanes=lanes))
    assert dividing == max(n for n in range(1, lanes + 1) if BATCH % n == 0)
    source = make_source(packed, lanes=dividing)
    if dividing % size:
        fitting = named(lambda: source.check_ranks(size))
        make_source(packed, lanes=fitting).check_ranks(size)
        wanted = [n for n in range(1, dividing + 1) if BATCH % n == 0 and n % size == 0]
        assert fitting == max(wanted, default=size)


def test_a_window_in_which_a_lane_has_no_whole_row_is_refused_before_anything_runs(
    make_study, tmp_path
):
    def stream(window_tokens: int) -> Stream:
        return Stream(window_tokens=window_tokens, lanes=4, calibration_tokens=9, lm_threads=None)

    rule = (
        r"window_tokens must be at least .*\(4 \* 32 = 128\), got 127.*set .*window_tokens=131072"
    )
    with pytest.raises(ValueError, match=rule):
        make_study(tmp_path, activation=stream(127))
    make_study(tmp_path, activation=stream(128))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"lanes": 0}, "lanes must be at least 1, got 0; set activation.lanes=8"),
        ({"window_tokens": 3}, "window_tokens must be at least 4, got 3"),
        ({"calibration_tokens": 0}, "calibration_tokens must be at least 1"),
        ({"lm_threads": -1}, "lm_threads must be null or a whole number of at least 0, got -1"),
        ({"lm_threads": True}, "lm_threads must be null or a whole number"),
    ],
)
def test_settings_that_make_no_stream_are_refused(settings, rule):
    good = {"window_tokens": WINDOW, "lanes": LANES, "calibration_tokens": 1, "lm_threads": None}
    with pytest.raises(ValueError, match=rule):
        Stream(**(good | settings))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_thread_never_hands_over_half_written_windows(
    packed, neox_folder, make_source
):
    from ssae.language_model.frozen import LanguageModel

    lm = LanguageModel(str(neox_folder), device="cuda")
    steps = range(3 * packed.num_tokens // BATCH)
    expected = read(make_source(packed, lm), steps)
    for _ in range(3):
        assert_same_bits(read(make_source(packed, lm, lm_threads=1), steps), expected)
    assert expected[0].activations.is_cuda
