"""ssae evaluate: every arm on both test splits.

metrics.json   flat list of {name, value, low, high, sae, split, band, num_tokens, formula}
tables.json    what is drawn, by SAE and split: error_by_rank, represented, latent_ranks, spread,
               firing_rates, log_ratios; by SAE: decoder_cosines, concepts; and differing_latents
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact, build
from ssae.corpus.base import TESTS, load_split
from ssae.harvest import harvest
from ssae.metric.change import activation_log_ratios, decoder_cosines, nearest_cosines
from ssae.metric.concept import concept_labels, concept_scores
from ssae.metric.differing import differing_latents
from ssae.metric.frequency import frequency_of
from ssae.metric.latents import silence_counts
from ssae.metric.measures import Measured
from ssae.metric.rows import concept_metrics, count_rows, forgetting_rows, ratio_rows, tail_rows
from ssae.metric.splice import measure_split
from ssae.metric.tables import concept_rows, cosine_table, log_ratio_table, split_tables
from ssae.read_pool import read_corpus
from ssae.retrieve import retrieve
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import load
from ssae.study import Study
from ssae.tokenise import tokenise
from ssae.train import train

log = logging.getLogger(__name__)

Table = list[dict[str, Any]]


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
        "format": 3,
    }

    def make(folder: Path) -> dict[str, Any]:
        lm = study.language_model
        saes = {name: load(artifact.path).to(lm.device_used) for name, artifact in trained.items()}
        kept = {name: _kept(study, saes, name, artifact) for name, artifact in trained.items()}
        pool_counts = Rows(tokenise(study, pool_sample)).token_counts
        frequency = frequency_of(pool_counts)
        metrics: Table = []
        tables: dict[str, Table] = {}
        results = {}
        for split in TESTS:
            mean = Activations(harvested[split]).mean
            rows = Rows(tokenise(study, corpus, split, study.evaluation_tokens))
            found = measure_split(study, saes, rows, mean, frequency, name=split)
            metrics += ratio_rows(found, split, study.num_bootstraps, study.seed)
            metrics += tail_rows(found, split)
            for name, measured in found.items():
                silence = _silence(study, trained[name], measured)
                metrics += count_rows(silence, silence_counts, measured.num_tokens, name, split)
                drawn = split_tables(measured, silence, pool_counts, frequency.ranks)
                drawn["log_ratios"] = _log_ratios(study, name, found, kept[name])
                where = {"sae": name, "split": split}
                for table, entries in drawn.items():
                    tables.setdefault(table, []).extend(where | entry for entry in entries)
            results[split] = found
        metrics += _forgetting(study, results["general_test"])
        sources = [s for split in TESTS for s in load_split(corpus, split)["source"]]
        tables["concepts"] = []
        for name in saes:
            own, entries = _concepts(study, name, results, sources)
            metrics += own
            tables["concepts"] += entries
        tables["decoder_cosines"] = _cosines(study, saes, kept)
        tables["differing_latents"] = differing_latents(
            study,
            saes,
            {name: measured.fires for name, measured in results["subdomain_test"].items()},
            Activations(harvested["subdomain_test"]),
            load_split(corpus, "subdomain_test"),
            _of_training(trained[study.arm], "recycled").bool(),
        )
        for name, content in (("metrics", metrics), ("tables", tables)):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return {"num_metrics": len(metrics)}

    return build(study.artifacts, "evaluate", inputs, make)


def _generalist(study: Study) -> str | None:
    """Return the arm that the studied arm started from; None where it was not an arm."""
    start = study.arms[study.arm].init_from
    return start if start in study.arms else None


def _forgetting(study: Study, measured: Mapping[str, Measured]) -> Table:
    generalist = _generalist(study)
    if generalist is None:
        return []
    return forgetting_rows(measured, "general_test", generalist, study.num_bootstraps, study.seed)


def _concepts(
    study: Study,
    name: str,
    results: Mapping[str, Mapping[str, Measured]],
    sources: list[str | None],
) -> tuple[Table, Table]:
    """Return rows of metrics.json and of tables.json for the concepts that sources name."""
    both = [results[split][name] for split in TESTS]
    # evaluation_tokens may end before the documents do: what was not read has no features.
    read = np.flatnonzero(np.concatenate([found.sums["tokens"].sum(1) for found in both]))
    concepts, labels = concept_labels([sources[document] for document in read])
    if not concepts:
        return [], []
    features = sparse.csr_matrix(sparse.vstack([measured.peaks for measured in both]))[read]
    scores = concept_scores(features, labels, study.seed)
    num_tokens = sum(measured.num_tokens for measured in both)
    entries = [{"sae": name} | entry for entry in concept_rows(scores, concepts, labels)]
    return concept_metrics(scores, name, num_tokens), entries


def _kept(
    study: Study, saes: Mapping[str, SparseAutoencoder], name: str, artifact: Artifact
) -> Tensor:
    """Return which latents j (num_old,) bool still are latent j of the arm they started from.

    None is where the arm did not start from an arm; recycled ones were started anew, and extra ones
    (start=residual) lie behind those of the old SAE.
    """
    before = study.arms[name].init_from
    if before is None or before not in saes:
        return torch.zeros(0, dtype=torch.bool)
    kept = torch.ones(saes[before].d_sae, dtype=torch.bool)
    recycled = _of_training(artifact, "recycled").bool()[: len(kept)]
    kept[: len(recycled)] &= ~recycled
    return kept


def _log_ratios(study: Study, name: str, measured: Mapping[str, Measured], kept: Tensor) -> Table:
    before = study.arms[name].init_from
    if before is None or not kept.any():
        return []
    own, old = (measured[sae].fires[: len(kept)][kept] for sae in (name, before))
    return [{"reference": before, **log_ratio_table(activation_log_ratios(own, old))}]


def _cosines(
    study: Study, saes: Mapping[str, SparseAutoencoder], kept: Mapping[str, Tensor]
) -> Table:
    """Compare every arm with the one it started from, or else with the generalist."""
    rows = []
    for name, sae in saes.items():
        before = study.arms[name].init_from
        own = sae.W_dec.detach()
        if before is not None and kept[name].any():
            where = kept[name].to(own.device)
            pair = (W[: len(where)][where] for W in (own, saes[before].W_dec.detach()))
            matched, cosines = "index", decoder_cosines(*pair)
        else:
            before = _generalist(study)
            if before is None or before == name:
                continue
            matched, cosines = "nearest", nearest_cosines(own, saes[before].W_dec.detach())
        row = {"sae": name, "reference": before, "matched": matched}
        rows.append(row | cosine_table(cosines))
    return rows


def _silence(study: Study, artifact: Artifact, measured: Measured) -> dict[str, int]:
    since = _of_training(artifact, "tokens_since_fired")
    return silence_counts(measured.fires, since, study.training.dead_after_tokens)


def _of_training(artifact: Artifact, name: str) -> torch.Tensor:
    """Return what training recorded of every latent; zeros (1,) for an SAE trained elsewhere."""
    path = artifact.path / "latents.safetensors"
    recorded = load_file(path) if path.exists() else {}
    return recorded.get(name, torch.zeros(1))
