import re

import numpy as np
import pytest
from scipy import stats

from ssae.report import captions
from ssae.report.marks import drawn_rows
from ssae.report.table import SAES

OPTIONS = {"split": "subdomain_test", "styles": SAES}
SAID = {
    "represented_by_frequency": "represented",
    "cumulative_represented": "represented",
    "error_by_rank": "error_by_rank",
    "firing_rates": "firing_rates",
    "activation_counts": "latent_ranks",
    "effective_types": "spread",
    "entropy_against_maximum": "spread",
    "largest_by_rank": "spread",
    "log_ratios": "log_ratios",
    "decoder_cosines": "decoder_cosines",
}


def say(name, tables, **options):
    return getattr(captions, name)(tables[SAID[name]], **OPTIONS | options)


def own(tables, name):
    return drawn_rows(tables[SAID[name]], "subdomain_test", SAES)


def numbers(text: str, sae: str) -> list[float]:
    """Return the numbers that the text gives of an SAE."""
    return [float(n) for n in re.findall(rf"(-?[\d.]+)%? \({re.escape(sae)}\)", text)]


def test_what_the_saes_have_is_said_in_their_order(metrics):
    text = captions.by_sae(metrics, name="tail_recall", **OPTIONS)
    assert text.startswith("tail_recall on subdomain_test: 0.2500 (generalist), 0.2800 (control)")


def test_the_share_of_rare_types_is_that_of_the_rarer_half_of_the_bins(tables):
    text = say("represented_by_frequency", tables)
    assert "390 types that occur fewer than 100 times" in text
    for row in own(tables, "represented_by_frequency"):
        bins = [b for b in row["bins"] if b["num_types"] and b["high"] < 101]
        share = sum(b["num_represented"] for b in bins) / sum(b["num_types"] for b in bins)
        assert numbers(text, row["sae"]) == [pytest.approx(100 * share, abs=0.051)]


def test_the_share_beyond_four_fifths_of_the_tokens_is_read_from_the_curve(tables):
    text = say("cumulative_represented", tables)
    for i, sae in enumerate(SAES):  # the curves of the example are powers
        assert numbers(text, sae) == [pytest.approx(100 * (1 - 0.8 ** (4 + i)), abs=0.2)]


def test_the_error_of_rare_types_is_weighted_by_their_tokens():
    rows = [
        {"sae": "control", "split": "subdomain_test", "rank_low": low, "rank_high": low,
         "num_tokens": count, "mean": mean, "max": mean}
        for low, count, mean in ((1, 9, 7.0), (2, 9, 7.0), (3, 9, 7.0), (4, 9, 7.0),
                                 (5, 3, 1.0), (6, 1, 5.0))
    ]  # fmt: skip
    assert captions.error_by_rank(rows, **OPTIONS) == (
        "Mean error of tokens whose type has rank 5 or more: 2.000 (control)."
    )


def test_histograms_are_said_in_shares(tables):
    text = say("decoder_cosines", tables)
    for row in own(tables, "decoder_cosines"):
        middles = np.convolve(row["bin_edges"], [0.5, 0.5], "valid")
        share = 100 * np.sum(np.array(row["counts"])[middles < 0.95]) / np.sum(row["counts"])
        assert numbers(text, row["sae"]) == [pytest.approx(share, abs=0.051)]
    text = say("log_ratios", tables)
    assert "more than twice the generalist's share of the firings" in text
    assert all(len(numbers(text, sae)) == 2 for sae in SAES[1:])
    text = say("firing_rates", tables)
    assert numbers(text, "specialist") == [pytest.approx(100 * 23 / 1528, abs=0.051)]


def test_the_middle_latent_and_the_medians_are_those_of_the_tables(tables):
    text = say("activation_counts", tables)
    row = own(tables, "activation_counts")[-1]
    assert "rank 1,000 fires, of 61,234 tokens" in text
    after = next(place for place, rank in enumerate(row["ranks"]) if rank >= 1000)
    high, low = row["counts"][after - 1 : after + 1]
    assert low <= numbers(text, "specialist")[0] <= high
    assert low < high
    text = say("effective_types", tables)
    median = own(tables, "effective_types")[0]["median_effective_types"]
    assert numbers(text, "generalist") == [pytest.approx(median, abs=0.01)]
    assert numbers(say("largest_by_rank", tables), "control") == [2.5]


def test_the_rank_correlation_is_spearmans(tables):
    text = say("entropy_against_maximum", tables)
    for row in own(tables, "entropy_against_maximum"):
        expected = stats.spearmanr(np.array(row["points"])[::4]).statistic
        assert numbers(text, row["sae"]) == [pytest.approx(expected, abs=0.0051)]


def test_of_many_saes_the_extremes_are_said():
    values = {f"sae{i}": 0.1 * i for i in range(1, 8)}
    said = captions.each(values, captions.percent)
    assert said == "from 10.0% (sae1) to 70.0% (sae7)"


@pytest.mark.parametrize("name", SAID)
def test_no_data_is_no_sentence_and_data_are_one(tables, name):
    assert say(name, tables | {SAID[name]: []}) == ""
    assert say(name, tables, styles=[]) == ""
    text = say(name, tables)
    assert text.endswith(").")
    assert text.count(". ") == 0
