import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from ssae.probe.linear import Logistic
from ssae.probe.settings import Shift

VALID = {
    "label": "profession", "spurious": "gender", "classes": None, "values": None,
    "generalist": "first", "specialist": "second", "hookpoints": None, "widths": [1, 0.125],
    "seeds": [0, 1], "num_folds": 5, "min_documents": 5, "probe": Logistic(C=1.0),
    "attribution": "integrated_gradients", "attribution_steps": 10, "num_examples": 100,
    "control": None, "num_candidates": 64, "min_effect": 0, "min_selectivity": 0.75,
    "word_pairs": [["he", "she"]],
    "examples": None, "candidates": None, "concepts": ["nurse"], "num_contexts": 5,
}  # fmt: skip


def shift(**changes) -> Shift:
    return Shift(**VALID | changes)


def test_the_defaults_are_complete_and_valid():
    stored = yaml.safe_load((Path(__file__).parents[2] / "conf/config.yaml").read_text())["shift"]
    assert stored.pop("_target_") == "ssae.probe.settings.Shift"
    names = {field.name for field in dataclasses.fields(Shift)}
    assert set(stored) | {"probe"} == names
    found = Shift(**stored, probe=Logistic(C=1.0))
    assert found.widths[0] == 1
    assert {type(word) for pair in found.word_pairs for word in pair} == {str}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_folds": None},
        {"num_folds": 2},
        {"num_examples": None},
        {"num_examples": 1},
        {"min_selectivity": 1},
        {"min_selectivity": 0.51},
        {"widths": [1]},
        {"widths": [1.0, 0.5, 1e-3]},
        {"seeds": [7]},
        {"word_pairs": [], "examples": "f.jsonl"},
        {"word_pairs": [], "candidates": "c.yaml"},
        {"attribution": "exact"},
        {"attribution": "attribution_patching"},
        {"concepts": []},
        {"hookpoints": ["a", "b"]},
    ],
)
def test_what_the_protocol_allows_is_taken(changes: dict):
    found = shift(**changes)
    assert {name: getattr(found, name) for name in changes} == changes


WRONG = [
    ({"label": 3}, "shift.label must be a text, got 3; set shift.label="),
    ({"num_candidates": 2.5}, "shift.num_candidates must be a whole number, got 2.5; set shift."),
    ({"min_selectivity": "high"}, "shift.min_selectivity must be a number, got 'high'"),
    ({"min_documents": 0}, "shift.min_documents must be at least 1, got 0; set shift.min_doc"),
    ({"attribution_steps": 0}, "shift.attribution_steps must be at least 1, got 0; set shift.attr"),
    ({"num_candidates": -1}, "shift.num_candidates must be at least 1, got -1; set shift.num_cand"),
    ({"num_contexts": 0}, "shift.num_contexts must be at least 1, got 0; set shift.num_contexts="),
    ({"num_folds": 1}, "shift.num_folds must be null or a whole number of at least 2, got 1; set"),
    ({"num_folds": 5.0}, "shift.num_folds must be null or a whole number of at least 2, got 5.0"),
    ({"num_folds": True}, "shift.num_folds must be null or a whole number of at least 2, got True"),
    ({"num_examples": 0}, "shift.num_examples must be null or a whole number of at least 1, got 0"),
    ({"num_examples": "all"}, "got 'all'; set shift.num_examples=100"),
    ({"attribution": "lrp"}, "got 'lrp'; set shift.attribution=integrated_gradients"),
    ({"min_selectivity": 0.5}, "shift.min_selectivity must lie in (0.5, 1], got 0.5"),
    ({"min_selectivity": 1.01}, "shift.min_selectivity must lie in (0.5, 1], got 1.01"),
    ({"min_selectivity": float("nan")}, "shift.min_selectivity must lie in (0.5, 1], got nan"),
    ({"widths": []}, "(0, 1], the first of them 1, got []; set shift.widths=[1,0.125]"),
    ({"widths": [0.5, 1]}, "the first of them 1, got [0.5, 1]; set shift.widths="),
    ({"widths": [1, 0]}, "(0, 1], the first of them 1, got [1, 0]; set shift.widths="),
    ({"widths": [1, 2]}, "(0, 1], the first of them 1, got [1, 2]; set shift.widths="),
    ({"widths": [1, "half"]}, "got [1, 'half']; set shift.widths="),
    ({"widths": 1}, "set shift.widths=[1,0.125]"),
    ({"seeds": []}, "shift.seeds must be whole numbers, got []; set shift.seeds=[0,1,2,3,4]"),
    ({"seeds": [0, -1]}, "shift.seeds must be whole numbers, got [0, -1]; set shift.seeds="),
    ({"seeds": [0.5]}, "shift.seeds must be whole numbers, got [0.5]; set shift.seeds="),
    ({"seeds": [True]}, "shift.seeds must be whole numbers, got [True]; set shift.seeds="),
    ({"seeds": 3}, "set shift.seeds=[0,1,2,3,4]"),
    ({"seeds": [1, 1]}, "shift.seeds=[1, 1] and shift.widths=[1, 0.125] must not repeat; set"),
    ({"widths": [1, 1.0]}, "shift.widths=[1, 1.0] must not repeat; set"),
    ({"word_pairs": [["he"]]}, "shift.word_pairs must be pairs of words, got [['he']]; set shift."),
    ({"word_pairs": ["he", "she"]}, "shift.word_pairs must be pairs of words, got ['he', 'she']"),
    ({"word_pairs": ["mr", "ms"]}, "shift.word_pairs must be pairs of words, got ['mr', 'ms']"),
    ({"word_pairs": [["he", 1]]}, "shift.word_pairs must be pairs of words, got [['he', 1]]"),
    ({"word_pairs": []}, "nothing says which latents carry the attribute; set shift.word_pairs="),
    ({"probe": None}, "shift.probe must be one, got None; set shift/probe=logistic"),
    ({"concepts": "nurse"}, "set shift.concepts=["),
    ({"hookpoints": "gpt_neox.layers.1"}, "set shift.hookpoints=["),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(c)[:40] for c, _ in WRONG])
def test_what_is_wrong_is_refused_with_rule_value_and_override(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        shift(**changes)


def test_the_path_of_judged_candidates_is_no_content():
    [field] = [f for f in dataclasses.fields(Shift) if f.metadata.get("content") is False]
    assert field.name == "candidates"
