import math

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
            for k, band in enumerate(BANDS):
                add("fvu", 0.4 - 0.03 * k - 0.013 * i, low=0.01, high=0.5, band=band, **at)
                add("perplexity_clean", 1000.5 / 4**k, band=band, **at)
                add("perplexity_spliced", (1.3 + i / 8) * 1000.5 / 4**k, band=band, **at)
                add("perplexity_ratio", 1.3 + i / 8, low=1.2, high=1.9, band=band, **at)
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
    }
