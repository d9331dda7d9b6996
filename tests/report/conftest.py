import math

import numpy as np
import pytest

from ssae.report.table import BANDS, SAES, SPLITS


@pytest.fixture
def metrics() -> list[dict]:
    """Numbers that are all different, so that a number in the wrong place is seen."""
    rows = []

    def add(name, value, *, low=None, high=None, sae=None, split="pool", band="all", **more):
        rows.append(
            {"name": name, "value": value, "low": low, "high": high, "sae": sae, "split": split}
            | {"band": band, "num_tokens": 61234, "formula": f"ssae.metric.{name}", **more}
        )

    for i, sae in enumerate(SAES):
        for j, split in enumerate(SPLITS):
            at = {"sae": sae, "split": split}
            fvu = 0.2 - 0.02 * i + 0.001 * j if j == 0 else 0.13 + 0.02 * i
            add("fvu", fvu, low=0.9 * fvu, high=1.1 * fvu, **at)
            add("l0", 16.25 + i / 16, **at)
            spliced = 25.37 - i if j == 0 else 31.11 + i
            add("perplexity_spliced", spliced, low=spliced - 0.1, high=spliced + 0.1, **at)
            add("perplexity_clean", 18.23 + j, **at)
            add("perplexity_zero", 2841.7 + j, **at)
            add("ce_recovered", 0.91 + 0.01 * i + 0.001 * j, **at)
            tail = 0.25 + 0.03 * i + 0.004 * j
            add("tail_recall", tail, low=tail - 0.01, high=tail + 0.01, **at)
            add("tail_error", 0.22 - 0.02 * i, low=0.21 - 0.02 * i, high=0.23 - 0.02 * i, **at)
            for k, reference in enumerate(SAES):
                against = at | {"reference": reference}
                if k != i:
                    gain = 0.03 * (i - k)
                    add(
                        "tail_recall_difference", gain, low=gain - 0.02, high=gain + 0.02, **against
                    )
                    add("tail_error_difference", -0.02 * (i - k), low=-0.5, high=0.5, **against)
                    add("tail_error_ratio", (11 - i) / (11 - k), low=0.5, high=1.5, **against)
            if j == 1:
                add("forgetting", 0.11 * i - 0.05, low=0.11 * i - 0.06, high=0.11 * i - 0.04, **at)
            for k, band in enumerate(BANDS):
                add("fvu", 0.4 - 0.03 * k - 0.013 * i, low=0.01, high=0.5, band=band, **at)
                add("perplexity_clean", 1000.5 / 4**k, band=band, **at)
                add("perplexity_spliced", (1.3 + i / 8) * 1000.5 / 4**k, band=band, **at)
                add("perplexity_ratio", 1.3 + i / 8, low=1.2, high=1.9, band=band, **at)
        for k, name in enumerate(("concept_recall", "concept_auroc", "concept_f1")):
            add(name, 0.51 + 0.03 * i + 0.1 * k, sae=sae, split="both_tests")
    for i, retriever in enumerate(("random", "bm25", "dense")):
        for j, name in enumerate(("precision", "recall", "average_precision")):
            add(name, 0.1 + 0.3 * i + 0.017 * j, retriever=retriever)
    return rows


@pytest.fixture
def tables() -> dict:
    """One of everything, with texts that would break a careless page."""
    ranks, rates = [], []
    for i, sae in enumerate(SAES):
        for split in SPLITS:
            for low in (1, 10, 100, 1000):
                mean = 0.05 * (i + 1) * math.log10(10 * low)
                row = {"sae": sae, "split": split, "rank_low": low, "rank_high": 10 * low}
                ranks.append({**row, "mean": mean, "max": 5 * mean, "num_tokens": 500})
            row = {"sae": sae, "split": split, "num_latents": 2048, "num_tokens": 61234}
            row |= {"num_silent": 111 + i, "num_rare": 222 + i}
            rates.append(
                {**row, "bin_edges": [-4.0, -3.0, -2.0, -1.0], "counts": [5, 1500, 20 + i]}
            )
    tokens = [
        "The",
        "\n    ",
        "<script>alert(1)</script>",
        "\x00\x1b\ud800\u202e",
        "\U0001f600",
        "{{ 7*7 }}",
    ]
    context = {"tokens": tokens, "activations": [0.0, 0.0, 2.5, 0.0, 1.0, 0.0], "peak": 2}
    context |= {"source": '"><img src=http://evil.example/x onerror=alert(2)>', "activation": 2.5}
    latent = {"latent": 17, "log_ratio": 3.25, "decoder_cosine": 0.8125}
    latent |= {"firing_rates": {"generalist": 0.0011, "specialist": 0.0222}}
    latent |= {"contexts": {"generalist": [], "specialist": [context]}}
    document = {
        "rank": 1,
        "score": 0.875,
        "source": "<b>x</b>",
        "text": "</pre><script src=//e.x>" * 99,
    }
    return {
        "error_by_rank": ranks,
        "firing_rates": rates,
        "differing_latents": [latent],
        "retrieved": [document],
    } | latent_tables()


def latent_tables() -> dict:
    """Tables of types and latents, of numbers that all differ and look like those of real SAEs."""
    tables: dict = {name: [] for name in ("represented", "latent_ranks", "spread")}
    tables |= {name: [] for name in ("log_ratios", "decoder_cosines", "concepts")}
    lows = [0.1 * 10 ** (k / 2) for k in range(11)]
    ranks = np.unique(np.logspace(0, math.log10(2000), 40).round()).astype(int)
    for i, sae in enumerate(SAES):
        rng = np.random.default_rng(i)
        for j, split in enumerate(SPLITS):
            at = {"sae": sae, "split": split}
            bins = [
                {
                    "low": low, "high": low * math.sqrt(10), "num_types": 40 + 10 * k + j,
                    "num_represented": round((40 + 10 * k) * (0.04 + 0.05 * k + 0.03 * i)),
                }
                for k, low in enumerate(lows)
            ]  # fmt: skip
            bins.append({"low": 1e6, "high": 2e6, "num_types": 0, "num_represented": 0})
            curve = [[x, x ** (4 + i + j)] for x in np.linspace(0, 1, 50).tolist()]
            tables["represented"].append({**at, "bins": bins, "cumulative": curve})
            counts = (9000 * ranks ** (-0.6 + 0.03 * i) * np.exp(-ranks / 900)).astype(int)
            row = {**at, "num_tokens": 61234, "ranks": ranks.tolist(), "counts": counts.tolist()}
            tables["latent_ranks"].append(row)
            entropy = rng.normal(3.5 - 0.3 * i, 1.1, 1000).clip(0, 8)
            largest = np.exp(rng.normal(1.5 - 0.2 * entropy + 0.1 * i, 0.4))
            row = {**at, "median_effective_types": math.exp(np.median(entropy))}
            row["entropy"] = histogram(entropy, np.linspace(0, 8.5 + i / 2, 41))
            row["max_activation"] = histogram(np.log10(largest), np.linspace(-2, 3, 51))
            row["points"] = np.column_stack([entropy, largest]).tolist()
            means = [5.0 + i, 4.0 + i, 2.0 + 0.5 * i]
            row["max_per_type"] = {"rank_low": [1, 11, 101], "rank_high": [10, 100, 1000]}
            row["max_per_type"]["mean"] = means
            tables["spread"].append(row)
            if i:
                ratios = (rng.standard_t(3, 2000) * 0.3 * i - 0.1).clip(-12, 12)
                row = {**at, "reference": "generalist", "num_latents": 2000}
                edges = np.linspace(-12 - i, 12 + i, 81)
                tables["log_ratios"].append(row | histogram(ratios, edges))
        if i:
            row = {"sae": sae, "reference": "generalist", "matched": "index"}
            cosines = 1 - np.abs(rng.normal(0, 0.04 * i, 2000))
            tables["decoder_cosines"].append(row | histogram(cosines, np.linspace(-1, 1, 81)))
        for k, concept in enumerate(("scipy.stats", "torch.distributions", "<b>numpy</b>")):
            row = {
                "sae": sae,
                "concept": concept,
                "num_documents": 90 - 7 * k,
                "latent": 12 * i + k,
            }
            auroc = 0.71 + 0.05 * i + 0.01 * k if k < 2 else None
            tables["concepts"].append({**row, "auroc": auroc, "f1": 0.4 + 0.03 * i + 0.01 * k})
    return tables


def histogram(values, edges) -> dict:
    counts, _ = np.histogram(values, edges)
    return {"bin_edges": edges.tolist(), "counts": counts.tolist()}
