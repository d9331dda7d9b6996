import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssae.metric.concept import ConceptRecall, DocumentPeaks
from ssae.metric.error_by_rank import ErrorByRank
from ssae.metric.firings import Firings
from ssae.metric.represented import RepresentedTypes
from ssae.metric.spread import TokenSpread
from ssae.metric.sums import QUANTITIES, DocumentBandSums, document_draws
from ssae.metric.tail import TailError, TailRecall, TailTypes
from ssae.sae.sparse import ActiveSet, SparseLatents

NUM_TOKENS, D_SAE, NUM_TYPES, NUM_DOCUMENTS, BATCH = 320, 12, 15, 40, 40
SPARSE = ("firings", "types", "spread", "peaks", "concepts", "tail_recall")


def measure(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Feed every size-th batch to all metrics, synchronise, and return what they compute."""
    generator = np.random.default_rng(0)
    token_ids = torch.from_numpy(generator.integers(0, NUM_TYPES, NUM_TOKENS))
    documents = torch.from_numpy(generator.integers(0, NUM_DOCUMENTS, NUM_TOKENS))
    own = token_ids[:, None] == torch.arange(D_SAE)
    share = torch.where(own, 0.8, 0.1)
    latents = torch.from_numpy(generator.gamma(1.0, size=own.shape).astype(np.float32))
    latents = (latents + 2 * own) * (torch.from_numpy(generator.random(own.shape)) < share)
    errors = torch.from_numpy(generator.random(NUM_TOKENS).astype(np.float32))
    draws = document_draws(NUM_DOCUMENTS, 10, seed=1).astype(np.int32)
    tail = TailTypes(np.arange(5, 12), np.full(7, 20), draws)
    labels = generator.random((NUM_DOCUMENTS, 2)) < 0.5
    metrics = {
        "firings": Firings(D_SAE),
        "types": RepresentedTypes(D_SAE, NUM_TYPES),
        "spread": TokenSpread(D_SAE, NUM_TYPES),
        "peaks": DocumentPeaks(D_SAE, NUM_DOCUMENTS),
        "concepts": ConceptRecall(D_SAE, labels, seed=2),
        "tail_recall": TailRecall(D_SAE, NUM_TYPES, tail),
        "tail_error": TailError(NUM_TYPES, tail),
        "by_rank": ErrorByRank(torch.tensor([0, 1, 3, NUM_TYPES])),
        "sums": DocumentBandSums(NUM_DOCUMENTS, NUM_TYPES),
    }
    for start in range(rank * BATCH, NUM_TOKENS, size * BATCH):
        piece = slice(start, start + BATCH)
        ids, at = token_ids[piece], documents[piece]
        dense = latents[piece]
        active = ActiveSet.every(len(dense), D_SAE, dense.device)
        for name in SPARSE:
            metrics[name].update(SparseLatents(active, dense.flatten()), ids, at)
        metrics["tail_error"].update(errors[piece], ids, at)
        metrics["by_rank"].update(errors[piece], ids)
        for quantity in QUANTITIES:
            metrics["sums"].update(quantity, errors[piece], at, ids)
    for metric in metrics.values():
        if size > 1:
            metric.sync()
    found = {name: metric.compute() for name, metric in metrics.items()}
    found["peaks"] = {"dense": found["peaks"].toarray()}
    found["firings"] = {"offsets": found["firings"].offsets}
    parts = {}
    for name, value in found.items():
        if not isinstance(value, dict):
            value = value._asdict() if hasattr(value, "_asdict") else {"": value}
        parts |= {f"{name} {key}": torch.as_tensor(part) for key, part in value.items()}
    return parts


def main() -> None:
    """Run one rank: `python test_ranks.py RANK SIZE FOLDER`."""
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    torch.save(measure(rank, size), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_that_saw_half_of_the_batches_each_compute_what_one_does(tmp_path: Path):
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(tmp_path)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    alone = measure(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            if expected.is_floating_point():
                torch.testing.assert_close(
                    found[name], expected, rtol=1e-12, atol=1e-12, equal_nan=True, msg=name
                )
            else:
                assert found[name].equal(expected), name


if __name__ == "__main__":
    main()
