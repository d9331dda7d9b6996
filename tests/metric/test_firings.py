import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from ssae.metric.firings import Firings
from ssae.metric.represented import RepresentedTypes
from ssae.sae.sparse import ActiveSet, SparseLatents


@pytest.mark.parametrize("k", [None, 4], ids=["dense", "sparse"])
@pytest.mark.parametrize("batch", [1, 70, 1000])
def test_the_table_lists_every_firing_once_sorted_by_latent_and_document(draw_tokens, k, batch):
    tokens = draw_tokens(0, num_tokens=100)
    firings = Firings(tokens.latents.shape[1])
    tokens.feed(firings, batch, k)
    table = firings.compute()
    expected = sorted(
        (j, int(tokens.document_ids[i]), int(tokens.token_ids[i]), float(tokens.latents[i, j]))
        for i, j in zip(*tokens.latents.nonzero(), strict=True)
    )
    documents, types = table.document_ids[table.tokens], table.token_ids[table.tokens]
    found = list(zip(table.latents.tolist(), documents.tolist(), types.tolist(),
                     table.values.tolist(), strict=True))  # fmt: skip
    assert sorted(found) == expected
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    np.testing.assert_array_equal(np.diff(table.offsets), (tokens.latents > 0).sum(0))
    assert sorted(table.document_ids) == table.document_ids.tolist()


def test_no_token_at_all_and_no_firing_give_a_table():
    firings = Firings(3)
    active = ActiveSet.every(2, 3, torch.device("cpu"))
    nothing = torch.zeros(2, dtype=torch.int64)
    firings.update(SparseLatents(active, torch.zeros(6)), nothing, nothing)
    table = firings.compute()
    assert table.offsets.tolist() == [0, 0, 0, 0]
    assert table.token_ids.tolist() == [0, 0]


def test_measures_of_one_group_store_the_firings_once(draw_tokens):
    tokens = draw_tokens(1)
    metrics = {"a": RepresentedTypes(12, 15), "b": RepresentedTypes(12, 15), "c": Firings(12)}
    together = MetricCollection(dict(metrics), compute_groups=[list(metrics)])
    tokens.feed(together, 70, 4)
    found = together.compute()
    stored = {id(piece) for metric in metrics.values() for piece in metric.values}
    assert len(stored) == len(range(0, len(tokens.token_ids), 70))
    alone = RepresentedTypes(12, 15)
    tokens.feed(alone, 70, 4)
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name].best_f1, alone.compute().best_f1)


def test_a_firing_takes_8_bytes_and_a_token_12(draw_tokens):
    tokens = draw_tokens(2)
    firings = Firings(12)
    tokens.feed(firings, 50, None)
    names = ("active", "latents", "values", "token_ids", "document_ids")
    held = sum(piece.untyped_storage().nbytes() for name in names for piece in
               getattr(firings, name))  # fmt: skip
    assert held == 8 * (tokens.latents > 0).sum() + 12 * len(tokens.token_ids)
