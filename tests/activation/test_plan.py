from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssae.activation.plan import places_of, plan_shards


def rows_of(text_tokens: list[int]) -> SimpleNamespace:
    return SimpleNamespace(text_tokens=np.array(text_tokens, dtype=np.int32))


@pytest.mark.parametrize("shard_tokens", [1, 7, 30, 31, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_every_token_is_in_one_shard_and_shards_follow_each_other(shard_tokens, seed):
    drawn = np.random.default_rng(seed).integers(0, 12, 80)
    shards = plan_shards(rows_of(drawn), shard_tokens)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert np.concatenate([shard.row_ids for shard in shards]).tolist() == [
        row for row in range(80) if drawn[row]
    ]
    first = 0
    for shard in shards:
        assert shard.first_token == first
        assert shard.num_tokens == drawn[shard.row_ids].sum() > 0
        # Cut at the row that holds a multiple of shard_tokens.
        assert shard.first_token // shard_tokens == (
            (shard.first_token + shard.num_tokens - drawn[shard.row_ids[-1]]) // shard_tokens
        )
        first += shard.num_tokens
    assert first == drawn.sum()


@pytest.mark.parametrize("seed", range(3))
def test_places_are_those_of_reading_order(seed):
    generator = np.random.default_rng(seed)
    rows = rows_of(generator.integers(0, 6, 50))
    for shard in plan_shards(rows, 40):
        where, place = {}, 0
        for row in shard.row_ids.tolist():
            where[row] = list(range(place, place + rows.text_tokens[row]))
            place += rows.text_tokens[row]
        shuffled = generator.permutation(shard.row_ids)
        for chosen in (shuffled[:5], shuffled, shard.row_ids[-4:], shard.row_ids[:1]):
            expected = [place for row in chosen.tolist() for place in where[row]]
            found = places_of(rows, shard.row_ids, chosen)
            assert torch.arange(shard.num_tokens)[found].tolist() == expected
        assert places_of(rows, shard.row_ids, shard.row_ids) == slice(0, shard.num_tokens)
