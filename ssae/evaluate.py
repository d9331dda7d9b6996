"""ssae evaluate: every arm on both test splits.

metrics.json   flat list of {name, value, low, high, sae, split, band, num_tokens, formula}
tables.json    what is drawn: error_by_rank, firing_rates, differing_latents
"""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file

from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact, build
from ssae.corpus.base import TESTS, load_split
from ssae.harvest import harvest
from ssae.metric.frequency import Frequency, frequency_of, rank_bins
from ssae.metric.latents import (
    firing_rate_histogram,
    most_different,
    silence_counts,
    top_contexts,
)
from ssae.metric.rows import count_rows, ratio_rows
from ssae.metric.splice import SplitSums, measure_split
from ssae.read_pool import read_corpus
from ssae.retrieve import retrieve
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import load
from ssae.study import Study
from ssae.tokenise import tokenise
from ssae.train import train

log = logging.getLogger(__name__)

NUM_DIFFERING = 10


def evaluate(study: Study) -> Artifact:
    """Return metrics and tables for every arm of the study, training what is not trained yet.

    Raises:
        ValueError: the model is an encoder: nothing to compare next-token predictions of.
    """
    study.language_model.check_causal()  # before the hours that training takes
    trained = {name: train(study, name) for name in study.arms}
    corpus = read_corpus(study)
    harvested = {split: harvest(study, corpus, split, study.evaluation_tokens) for split in TESTS}
    pool_sample = retrieve(study, study.frequency_retriever, study.frequency_tokens)
    inputs = {
        "arms": trained,
        "arm": study.arm,  # whose latents are compared
        "splits": harvested,
        "pool_sample": pool_sample,
        "dead_after_tokens": study.training.dead_after_tokens,
        "num_bootstraps": study.num_bootstraps,
        "seed": study.seed,
        "format": 1,
    }

    def make(folder: Path) -> dict[str, Any]:
        lm = study.language_model
        saes = {name: load(artifact.path).to(lm.device_used) for name, artifact in trained.items()}
        frequency = frequency_of(Rows(tokenise(study, pool_sample)).token_counts)
        metrics: list[dict[str, Any]] = []
        tables: dict[str, list[dict[str, Any]]] = {"error_by_rank": [], "firing_rates": []}
        fires = {}
        for split in TESTS:
            mean = Activations(harvested[split]).mean
            rows = Rows(tokenise(study, corpus, split, study.evaluation_tokens))
            sums = measure_split(study, saes, rows, mean, frequency, name=split)
            metrics += ratio_rows(sums, split, study.num_bootstraps, study.seed)
            for name, measured in sums.items():
                silence = _silence(study, trained[name], measured)
                metrics += count_rows(silence, silence_counts, measured.num_tokens, name, split)
                where = {"sae": name, "split": split}
                tables["error_by_rank"] += [where | row for row in _error_rows(measured, frequency)]
                histogram = firing_rate_histogram(measured.fires, measured.num_tokens)
                num = {"num_latents": len(measured.fires), "num_tokens": measured.num_tokens}
                tables["firing_rates"].append({**where, **num, **silence, **histogram})
            fires[split] = {name: measured.fires for name, measured in sums.items()}
        activations = Activations(harvested["subdomain_test"])
        tables["differing_latents"] = differing_latents(
            study,
            saes,
            fires["subdomain_test"],
            activations,
            load_split(corpus, "subdomain_test"),
            _of_training(trained[study.arm], "recycled").bool(),
        )
        for name, content in (("metrics", metrics), ("tables", tables)):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return {"num_metrics": len(metrics)}

    return build(study.artifacts, "evaluate", inputs, make)


def differing_latents(
    study: Study,
    saes: dict[str, SparseAutoencoder],
    fires: dict[str, torch.Tensor],
    activations: Activations,
    documents: datasets.Dataset,
    recycled: torch.Tensor,
) -> list[dict[str, Any]]:
    """Return the latents in which the studied arm and the arm it started from differ most.

    Empty when the arm did not start from an arm: then latent j of one is not latent j of the other.
    The same goes for latents whose `origin` is not "kept": "recycled" ones were started anew, and
    "extra" ones (start=residual) have no counterpart.
    """
    after = study.arm
    before = study.arms[after].init_from
    if before is None or before not in saes:
        return []
    num_old = saes[before].d_sae
    padded = torch.zeros_like(fires[after])
    padded[:num_old] = fires[before]
    fires = {before: padded, after: fires[after]}
    chosen = most_different(padded, fires[after], NUM_DIFFERING)
    tokenizer, sources = study.language_model.tokenizer, list(documents["source"])
    contexts: dict[str, dict[int, Any]] = {}
    for name in (before, after):
        known = chosen[chosen < saes[name].d_sae]
        found = top_contexts(saes[name].cpu(), activations, known, tokenizer, sources)
        contexts[name] = dict(zip(known.tolist(), found, strict=True))
    old_directions, directions = (saes[name].W_dec.detach() for name in (before, after))
    rows = []
    for latent in chosen.tolist():
        counts = {name: int(fires[name][latent]) for name in (before, after)}
        ratio = torch.tensor((counts[after] + 0.5) / (counts[before] + 0.5)).log()
        cosine, origin = None, "extra"
        if latent < num_old:
            pair = old_directions[latent], directions[latent]
            cosine = float(torch.cosine_similarity(*pair, dim=0))
            origin = "recycled" if latent < len(recycled) and recycled[latent] else "kept"
        rows.append(
            {
                "latent": latent,
                "origin": origin,
                "log_ratio": float(ratio),
                "decoder_cosine": cosine,
                "firing_rates": {name: n / len(activations) for name, n in counts.items()},
                "contexts": {name: contexts[name].get(latent, []) for name in (before, after)},
            }
        )
    return rows


def _silence(study: Study, artifact: Artifact, measured: SplitSums) -> dict[str, int]:
    since = _of_training(artifact, "tokens_since_fired")
    return silence_counts(measured.fires, since, study.training.dead_after_tokens)


def _of_training(artifact: Artifact, name: str) -> torch.Tensor:
    """Return what training recorded of every latent; zeros (1,) for an SAE trained elsewhere."""
    path = artifact.path / "latents.safetensors"
    recorded = load_file(path) if path.exists() else {}
    return recorded.get(name, torch.zeros(1))


def _error_rows(measured: SplitSums, frequency: Frequency) -> list[dict[str, Any]]:
    edges = rank_bins(len(frequency.ranks)).tolist()
    rows = []
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        count = int(measured.rank_counts[index])
        if count:
            row: dict[str, Any] = {"rank_low": low + 1, "rank_high": high, "num_tokens": count}
            row["mean"] = float(measured.rank_sums[index] / count)
            row["max"] = float(measured.rank_maxima[index])
            rows.append(row)
    return rows
