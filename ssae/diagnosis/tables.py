"""What diagnose.html draws and lists: plain lists, by SAE and split."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssae.diagnosis.measure import Diagnosis, Sample
from ssae.diagnosis.rows import CONE_VIOLATED, EXCESS, counted
from ssae.theory.antipodal import AntipodalPair
from ssae.theory.cone import Cone
from ssae.theory.gap import OptimalityGap
from ssae.theory.splits import Family

NUM_LISTED = 8
"""Pairs, violators, token types and trees in the tables."""
NUM_TOKENS = 4
"""Token types that name a latent."""
NUM_QUANTILES = 101
NUM_BINS = 10
"""Of equally many latents, by rarity."""
MIN_TYPE_COUNT = 20
"""Tokens of a type, for it to be listed."""
MIN_FAMILIES = 20
"""Latents with several children that fire together, for an absorbed share to be said."""

Table = list[dict[str, Any]]


def split_tables(own: Diagnosis, min_fires: int, tokenizer: Any) -> dict[str, Table]:
    """Return the tables of one SAE on one split."""
    known = counted(own, min_fires)
    excess = getattr(own.stationarity, EXCESS).cpu().numpy()[known]
    fires = own.stationarity.fires.cpu().numpy()
    names = _Names(own.sample, tokenizer)
    pairs, cones = own.pairs[:NUM_LISTED], worst_cones(own.cones)
    return {
        "violations": [
            {"quantiles": np.quantile(excess, np.linspace(0, 1, NUM_QUANTILES)).tolist()
             if len(excess) else [],
             "penalty": own.penalty._asdict()}
        ],
        "rarity": [_binned(own.rarity[known], excess)],
        "worst": [
            {"latent": int(j), "excess": _number(getattr(own.stationarity, EXCESS)[j]),
             "tangent": _number(own.stationarity.tangent[j]), "fires": int(fires[j]),
             "tokens": names.of(int(j))}
            for j in _largest(own, known)
        ],
        "spectrum": [{"cumulative": own.residual.spectrum.cumsum(0).tolist()}],
        "identity": [] if own.identity is None else [
            {"cosine": own.identity.cosine.tolist(),
             "expected": [_number(value) for value in own.identity.expected]}
        ],
        "types": _types(own, tokenizer),
        "pairs": [_pair(pair, names) for pair in pairs],
        "cones": [_cone(cone, fires, names) for cone in cones],
    }  # fmt: skip


def gap_table(gaps: Mapping[str, OptimalityGap]) -> Table:
    """Return the scale of objectives of every SAE, on its tokens and on those held out."""
    rows = []
    for sae, gap in gaps.items():
        about = {k: v for k, v in gap._asdict().items() if k not in ("scale", "held_out")}
        for where, scale in (("tokens", gap.scale), ("held_out", gap.held_out)):
            if scale is not None:
                rows.append({"sae_name": sae, "where": where, **scale._asdict(), **about})
    return rows


def split_table(
    narrow: str, wide: str, splits: Sequence[Family], samples: Mapping[str, Sample], tokenizer: Any
) -> dict[str, Any]:
    """Return what became of the latents of one SAE in a wider one."""
    numbers = [len(split.children) for split in splits]
    # Tokens of all families together: one of a family of few tokens says little.
    asked = sum(split.asked for split in splits)
    absorbing = sum(split.asked > 0 for split in splits)
    silent = sum(split.asked * split.absorbed for split in splits if split.asked)
    own, others = (_Names(samples[name], tokenizer) for name in (narrow, wide))
    trees = [split for split in splits if len(split.children) > 1]
    trees.sort(key=lambda split: (-min(len(split.children), 6), -split.fires))
    return {
        "narrow": narrow,
        "wide": wide,
        "children": np.bincount(numbers).tolist() if numbers else [],
        "absorbed": silent / asked if absorbing >= MIN_FAMILIES else None,
        "absorbing": absorbing,
        "purity": _mean([child.purity for split in splits for child in split.children]),
        "trees": [
            {
                "latent": tree.parent,
                "tokens": own.of(tree.parent),
                "fires": tree.fires,
                "covered": tree.covered,
                "absorbed": _number(tree.absorbed),
                "children": [
                    child._asdict() | {"tokens": others.of(child.latent)}
                    for child in tree.children[:NUM_LISTED]
                ],
            }
            for tree in trees[:NUM_LISTED]
        ],
    }


def worst_cones(cones: Sequence[Cone]) -> list[Cone]:
    """Return the latents whose cone condition is violated, the worst first."""
    found = [cone for cone in cones if cone.residual > CONE_VIOLATED and len(cone.violators)]
    return sorted(found, key=lambda cone: -cone.residual)[:NUM_LISTED]


class _Names:
    """The token types on which a latent's activation lies."""

    def __init__(self, sample: Sample, tokenizer: Any) -> None:
        self.sample, self.tokenizer = sample, tokenizer

    def of(self, latent: int) -> list[str]:
        """Return the types with the largest shares of its activation, as text."""
        z = self.sample.batch.z.columns(torch.tensor([latent], device=self.sample.batch.x.device))
        masses = torch.bincount(self.sample.token_ids, weights=z[:, 0].cpu())
        best = masses.topk(min(NUM_TOKENS, len(masses)))
        return [
            self.tokenizer.decode([int(i)])
            for value, i in zip(best.values, best.indices, strict=True)
            if value > 0
        ]


def _largest(own: Diagnosis, known: np.ndarray) -> np.ndarray:
    excess = np.where(known, np.nan_to_num(getattr(own.stationarity, EXCESS).cpu().numpy()), -1)
    order = np.argsort(-excess, kind="stable")[:NUM_LISTED]
    return order[excess[order] > 0]


def _binned(rarity: np.ndarray, excess: np.ndarray) -> dict[str, list[float]]:
    """Return medians and quartiles of the excess, of equally many latents by rarity."""
    order = np.argsort(rarity, kind="stable")
    parts = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    return {
        "per_million": [float(10 ** rarity[part].mean()) for part in parts],
        "median": [float(np.median(excess[part])) for part in parts],
        "low": [float(np.quantile(excess[part], 0.25)) for part in parts],
        "high": [float(np.quantile(excess[part], 0.75)) for part in parts],
    }


def _types(own: Diagnosis, tokenizer: Any) -> Table:
    """Return the token types that carry most more of r_perp than their share of the tokens."""
    errors, counts = own.residual.type_errors.cpu(), own.residual.type_counts.cpu()
    shares = errors / errors.sum().clamp_min(1e-300)
    expected = counts / counts.sum()
    more = torch.where(counts >= MIN_TYPE_COUNT, shares - expected, 0.0)
    best = more.topk(min(NUM_LISTED, len(more))).indices[: int((more > 0).sum())].tolist()
    return [
        {
            "token": tokenizer.decode([i]),
            "share": float(shares[i]),
            "token_share": float(expected[i]),
        }
        for i in best
    ]


def _pair(pair: AntipodalPair, names: _Names) -> dict[str, Any]:
    tokens = {f"{which}_tokens": names.of(getattr(pair, which)) for which in ("first", "second")}
    return pair._asdict() | {"is_dense": pair.is_dense} | tokens


def _cone(cone: Cone, fires: np.ndarray, names: _Names) -> dict[str, Any]:
    return {
        "latent": cone.latent,
        "residual": cone.residual,
        "fires": int(fires[cone.latent]),
        "tokens": names.of(cone.latent),
        "children": [{"latent": int(k), "tokens": names.of(int(k))} for k in cone.violators[:3]],
    }


def _number(value: float | Tensor) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
