"""The page of `ssae diagnose`: its sentences follow the numbers, whatever texts it is given."""

import numpy as np
import pytest

from ssae.report import diagnose_figures
from ssae.report.diagnose import print_diagnosis, write_diagnose_report
from ssae.report.diagnose_sentences import answers
from ssae.report.marks import styles
from tests.report.reading import ParsedPage, check_inert, drawn, texts, values_at

SPLITS = ("subdomain_test", "general_test")
HOSTILE = "</title><script>alert(3)</script>{{ 7*7 }}\x00\u202e\ud800"


def metric(name, value, split="subdomain_test", sae="generalist", spread=0.01, **more):
    low, high = (value - spread, value + spread) if spread else (None, None)
    return {"name": name, "value": value, "low": low, "high": high, "sae": sae, "split": split,
            "band": "all", "num_tokens": 100, "formula": "f"} | more  # fmt: skip


def rows(sae="generalist", change=-0.05, correlation=0.4, lam=0.0):
    found = []
    for split in SPLITS:
        found += [
            metric("tangent_excess_median", 0.2, split, sae),
            metric("tangent_excess_median", 0.3, split, sae, band="rarest quarter"),
            metric("tangent_excess_median", 0.1, split, sae, band="most common quarter"),
            metric("tangent_excess_own_risk_median", 0.17, split, sae),
            metric("tangent_excess_rarity_correlation", correlation, split, sae, 0.05),
            metric("tangent_excess_tail_difference", 0.07, split, sae, 0.02),
            metric("tail_latents", 12, split, sae, None),
            metric("tangent_excess_change", change, split, sae, 0.004, reference="generalist"),
            metric("lam", lam, split, sae, None),
            metric("excess_median", 0.6, split, sae),
            metric("cone_violated", 0.25, split, sae),
            metric("cone_examined", 8, split, sae, None),
            metric("antipodal_pairs", 1, split, sae, None),
            metric("shrinkage_share", 0.0625, split, sae, None),
            metric("linear_share", 0.28, split, sae, None),
            metric("effective_dimensions", 139.0, split, sae, None),
        ]
    return found


def tables(sae="generalist", token="the", is_dense=True):
    where = [{"sae": sae, "split": split} for split in SPLITS]
    pair = {"first": 113, "second": 871, "cosine": -0.97, "densities": [0.3, 0.2], "joint": 0.0,
            "share": 0.04, "correlation": 0.98, "is_dense": is_dense, "first_tokens": [token],
            "second_tokens": [token]}  # fmt: skip
    cone = {"latent": 5, "residual": 0.3, "fires": 40, "tokens": [token],
            "children": [{"latent": 9, "tokens": [token, "of"]}]}  # fmt: skip
    worst = {"latent": 4, "excess": 0.9, "tangent": 1.0, "fires": 30, "tokens": [token]}
    penalty = {"lam": 0.0, "origin": "none", "median": 0.1, "low": -1.0, "high": 1.2}
    scale = {"wide_limit": 10.0, "convex_path": 46.0, "own_path": 45.0, "optimal_codes": 40.0,
             "sae": 50.0, "lam": 2.0, "num_directions": 900, "num_convex": 240, "num_own": 250,
             "gamma": 0.1, "l0": 16.0,
             "optimal_l0": 17.0}  # fmt: skip
    child = {"latent": 7, "cosine": 0.9, "purity": 0.8, "coverage": 0.5, "fires": 20,
             "tokens": [token]}  # fmt: skip
    tree = {"latent": 3, "tokens": [token], "fires": 40, "covered": 0.9, "absorbed": 0.25,
            "asked": 8,
            "children": [child, child | {"latent": 8, "cosine": 0.7}]}  # fmt: skip
    return {
        "violations": [w | {"quantiles": np.linspace(0, 1, 101).tolist(), "penalty": penalty}
                       for w in where],
        "rarity": [w | {"per_million": [10.0, 100.0], "median": [0.4, 0.2], "low": [0.3, 0.1],
                        "high": [0.5, 0.3]} for w in where],
        "worst": [w | worst for w in where],
        "spectrum": [w | {"cumulative": [0.5, 0.75, 1.0]} for w in where],
        "types": [w | {"token": token, "share": 0.1, "token_share": 0.05} for w in where],
        "pairs": [w | pair for w in where],
        "cones": [w | cone for w in where],
        "gaps": [{"sae_name": sae, "where": place} | scale for place in ("tokens", "held_out")],
        "identity": [w | {"cosine": [-1.0, 0.5, 0.25], "expected": [-0.9, 0.5, None]}
                     for w in where],
        "splits": [{"narrow": sae, "wide": "wide", "children": [1, 2, 1], "absorbed": 0.25,
                    "absorbing": 30, "purity": 0.8, "trees": [tree]}],
    }  # fmt: skip


def said(metrics, tables_) -> str:
    return " ".join(sum(answers(metrics, tables_).values(), []))


@pytest.mark.parametrize("text", ["demo", HOSTILE])
def test_the_page_is_one_whole_file_without_scripts(tmp_path, text):
    page = write_diagnose_report(
        tmp_path, name=text, summary={"tokens": text}, metrics=rows(text), config=text,
        tables=tables(text, text),
    )  # fmt: skip
    written = page.read_text(encoding="utf-8")
    check_inert(written)
    assert ParsedPage(written).tags.count("svg") == 8


def test_a_pair_is_named_once_with_its_share_of_variance_in_every_sae():
    both = tables()
    both["pairs"] += [{**row, "sae": "specialist", "first": 871, "second": 113, "share": 0.03}
                      for row in both["pairs"]]  # fmt: skip
    [sentence, *_] = answers(rows() + rows("specialist"), both)[
        "Is a signed direction held as two latents?"
    ]
    assert (
        "latents 113 and 871 are an antipodal pair covering 4.0 % of variance in generalist, "
        "3.0 % of variance in specialist"
    ) in sentence
    without = said(rows(), tables(is_dense=False))
    assert "113" not in without
    assert "generalist: no signed direction is held as two latents" in without


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (-0.05, "closer to stationary"),
        (0.05, "further from stationary"),
        (0.001, "a tie"),
        (0.006, "hardly changed"),
    ],
)
def test_a_change_is_called_what_its_interval_says(change, words):
    found = answers(rows("specialist", change), tables("specialist"))
    [sentence] = found["What brings them closer, what moves them away?"]
    assert sentence.count(words) == 2
    assert "against the same ones of the generalist" in sentence


def test_a_price_is_spoken_of_where_it_is_paid():
    free, paid = said(rows(), tables()), said(rows(lam=2.0), tables())
    assert "lam d_j" not in free
    assert "pays lam = 2: its mean residuals miss lam d_j by 0.60 lam" in paid
    assert "its own objective gives to tokens it is 0.170 instead of 0.200" in free


@pytest.mark.parametrize(
    ("correlation", "words"),
    [(0.4, "violate stationarity more"), (-0.4, "violate stationarity less"), (0.01, "no clear")],
)
def test_rare_latents_are_blamed_only_with_evidence(correlation, words):
    assert words in said(rows(correlation=correlation), tables())


def test_the_scale_says_what_encoder_and_directions_cost():
    first, second = answers(rows(), tables())["How far is each SAE from the best dictionaries?"]
    assert "its 900 directions in use reach 40.00, 20 % less" in first
    assert "250 of them cost 45.00, 240 directions of other tokens 46.00" in first
    assert "46.00: its own serve new text better" in first
    assert "with its b_dec costs less than 10.00" in first
    assert "generalist 6.2 %" in second  # least squares; TopK was never asked for a price
    priced = tables()
    for row in priced["violations"]:
        row["penalty"] = {**row["penalty"], "origin": "objective"}
    assert len(answers(rows(), priced)["How far is each SAE from the best dictionaries?"]) == 1


def test_counts_are_said_where_there_are_few():
    text = said(rows(), tables())
    assert "2 of 8 examined latents violate the cone condition" in text
    assert "1 of 4 latents split into several, 1 have no child" in text
    assert "the heir is silent on 25 % of tokens (30 families)" in text
    assert "the 12 latents that represent a tail type differ from all others by +0.070" in text


def test_residuals_of_all_saes_stand_side_by_side():
    both = {name: row + tables("specialist")[name] for name, row in tables().items()}
    found = answers(rows() + rows("specialist"), both)["What is left over?"]
    assert found[0].endswith("active directions: generalist 6 %, specialist 6 %.")
    assert "of 3 dimensions, over: generalist 139, specialist 139." in found[1]
    assert found[2].endswith("would predict: generalist 28 %, specialist 28 %.")
    assert (
        "\u201cthe\u201d carries most above its share, 10.0 % of it on 5.0 % of tokens" in found[3]
    )


def test_more_directions_are_not_called_better_and_no_violation_has_no_worst():
    for own, cost, words in (
        (200, 45.0, ": its own serve new text better"),
        (250, 47.0, ": its own serve new text worse"),
        (300, 45.0, ""),
        (200, 47.0, ""),
    ):
        changed = tables()
        for row in changed["gaps"]:
            row |= {"num_own": own, "own_path": cost}
        start = f"{own} of them cost {cost:.2f}, 240 directions of other tokens 46.00"
        assert f"{start}{words}. No dictionary" in said(rows(), changed)
    none = [r | {"value": 0.0} if r["name"] == "cone_violated" else r for r in rows()]
    assert "0 of 8 examined latents violate the cone condition." in said(none, tables())


def test_what_was_not_measured_is_not_spoken_of(tmp_path):
    empty = {name: [] for name in tables()}
    assert answers([], empty) == {}
    page = write_diagnose_report(
        tmp_path, name="n", summary={}, metrics=[], tables=empty, config=""
    )
    assert "svg" not in ParsedPage(page.read_text(encoding="utf-8")).tags


def test_quantiles_are_drawn_where_they_are():
    svg = diagnose_figures.quantiles(
        tables()["violations"], "subdomain_test", styles(["generalist"])
    )
    points = drawn(svg, "series-0")
    assert np.allclose(
        values_at(svg, points[:, 0]), values_at(svg, points[:, 1], name="y"), atol=0.01
    )
    assert "generalist" in texts(svg)


def test_the_terminal_says_the_same(capsys):
    print_diagnosis(rows(), tables())
    printed = " ".join(capsys.readouterr().out.split())
    for sentence in sum(answers(rows(), tables()).values(), []):
        assert " ".join(sentence.split()) in printed
