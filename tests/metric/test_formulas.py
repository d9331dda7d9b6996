import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.metric import formulas
from ssae.metric.sums import QUANTITIES

positive = st.floats(0.1, 10)


def brute_force(tokens: list[dict[str, float]], name: str) -> float:
    """The definition of each number, from a list with one entry a token."""
    num = len(tokens)
    clean, spliced, zero = (
        sum(token[key] for token in tokens) / num for key in ("ce_clean", "ce_spliced", "ce_zero")
    )
    return {
        "fvu": sum(t["residual_sq"] for t in tokens) / sum(t["deviation_sq"] for t in tokens),
        "l0": sum(t["active"] for t in tokens) / num,
        "fvu_predicted": sum(t["residual_sq_predicted"] for t in tokens)
        / sum(t["deviation_sq_predicted"] for t in tokens),
        "l0_predicted": sum(t["active_predicted"] for t in tokens) / num,
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero": zero,
        "delta_ce": spliced - clean,
        "delta_ce_current": sum(t["ce_spliced_current"] - t["ce_clean_current"] for t in tokens)
        / num,
        "ce_recovered": (zero - spliced) / (zero - clean),
        "perplexity_clean": math.exp(clean),
        "perplexity_spliced": math.exp(spliced),
        "perplexity_ratio": math.exp(spliced - clean),
        "perplexity_zero": math.exp(zero),
    }[name]


tokens = st.lists(
    st.fixed_dictionaries(
        {
            "residual_sq": positive,
            "deviation_sq": positive,
            "active": st.integers(0, 9),
            "ce_clean": positive,
            "ce_spliced": positive,
            "ce_zero": st.floats(11, 15),
            "residual_sq_predicted": positive,
            "deviation_sq_predicted": positive,
            "active_predicted": st.integers(0, 9),
            "ce_clean_current": positive,
            "ce_spliced_current": positive,
        }  # fmt: skip
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("formula", formulas.FORMULAS, ids=lambda formula: formula.__name__)
def test_every_formula_equals_its_definition_on_single_tokens(formula):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(tokens)
    def check(tokens):
        sums = {
            name: np.array([[sum(token.get(name, 1) for token in tokens)]]) for name in QUANTITIES
        }
        expected = brute_force(tokens, formula.__name__)
        assert formula(sums)[0, 0] == pytest.approx(expected, rel=1e-9, abs=1e-12)

    check()


def test_fvu_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    sums = {"residual_sq": np.array(1.0 + 30.0), "deviation_sq": np.array(1.0 + 300.0)}
    assert formulas.fvu(sums) == pytest.approx(31 / 301)
    assert formulas.fvu(sums) != pytest.approx((1 / 1 + 30 / 300) / 2)


def test_all_formulas_are_listed_once():
    defined = [
        value
        for value in vars(formulas).values()
        if callable(value) and getattr(value, "__module__", "") == formulas.__name__
    ]
    assert list(formulas.FORMULAS) == defined
