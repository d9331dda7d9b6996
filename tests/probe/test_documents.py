import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from ssae.labelled.base import LabelledTexts
from ssae.labelled.files import LabelledFile
from ssae.probe.documents import (
    MIN_EXCHANGED,
    NUM_EXCHANGED,
    delete_words,
    exchange_words,
    load_groups,
    variants,
    write_documents,
)
from ssae.study import Study
from tests.conftest import biographies

PAIRS = [["he", "she"], ["him", "her"], ["his", "her"], ["mr", "ms"], ["husband", "wife"]]


def exchanged(text: str, pairs: list, side: int) -> str:
    """Word by word, without a pattern of the words."""
    found = []
    for piece in re.split(r"(\w+)", text):
        for pair in reversed(pairs):
            if piece.lower() == pair[1 - side]:
                new = pair[side]
                piece = new[0].upper() + new[1:] if piece[0].isupper() else new
                break
        found.append(piece)
    return "".join(found)


bios = functools.partial(biographies, num_documents=300, correlation=0.8, cues=0.7)


@pytest.fixture
def shift(make_study: Callable[..., Study], tmp_path: Path) -> Callable[..., Any]:
    """Return a function that gives the settings of `ssae shift`."""
    settings = make_study(tmp_path).shift
    return lambda **changes: dataclasses.replace(settings, **changes)


@pytest.mark.parametrize("side", [0, 1])
def test_words_of_biographies_are_exchanged_one_by_one(side: int):
    changed = 0
    for text in bios(num_documents=60).load().texts:
        found = exchange_words(text, PAIRS, side)
        assert found == exchanged(text, PAIRS, side)
        changed += found != text
    assert changed > 15


@pytest.mark.parametrize(
    ("text", "side", "expected"),
    [
        ("He said he knew him.", 1, "She said she knew her."),
        ("She said she knew her.", 0, "He said he knew his."),  # of her the last pair
        ("Her husband; his wife", 0, "His husband; his husband"),
        ("Mr. He-man, he's (he)", 1, "Ms. She-man, she's (she)"),
        ("The other chef hears the hero there", 1, "The other chef hears the hero there"),
        ("her_ 2he he2", 1, "her_ 2he he2"),
        ("he\nhe\u00a0he", 1, "she\nshe\u00a0she"),
        ("", 1, ""),
    ],
)
def test_only_whole_words_are_exchanged_and_capitals_kept(text: str, side: int, expected: str):
    assert exchange_words(text, PAIRS, side) == expected
    assert exchanged(text, PAIRS, side) == expected


def test_pairs_may_be_spelt_with_capitals_and_none_may_be_given():
    assert exchange_words("he met Anna, anna", [["He", "She"]], 1) == "She met Anna, anna"
    assert exchange_words("anna met Anna", [["anna", "otto"]], 1) == "otto met Otto"
    assert exchange_words("he", [], 1) == "he"


def test_a_word_within_another_does_not_hide_it():
    pairs = [["son", "daughter"], ["grand son", "grand daughter"], ["son in law", "in-law"]]
    text = "a son, a grand son, a son in law"
    assert exchange_words(text, pairs, 1) == "a daughter, a grand daughter, a in-law"


def test_a_word_of_signs_is_taken_literally():
    assert exchange_words("abc a.c", [["a.c", "x"]], 1) == "abc x"
    assert delete_words("abc a.c d", ["a.c"]) == "abc d"


def test_both_readings_differ_in_the_words_only():
    for text in bios(num_documents=60).load().texts:
        first, second = (exchange_words(text, PAIRS, side) for side in (0, 1))
        assert not set(re.findall(r"\w+", first.lower())) & {"she", "her", "ms", "wife"}
        assert not set(re.findall(r"\w+", second.lower())) & {"he", "him", "his", "mr", "husband"}
        assert len(re.findall(r"\w+", first)) == len(re.findall(r"\w+", second))
        assert re.sub(r"\w+", "", first) == re.sub(r"\w+", "", second) == re.sub(r"\w+", "", text)


def test_deleted_words_leave_everything_else():
    words = [word for pair in PAIRS for word in pair]
    for text in bios(num_documents=60).load().texts:
        pieces = re.split(r"(\w+)", text)
        left = "".join("" if piece.lower() in words else piece for piece in pieces)
        assert delete_words(text, words).split() == left.split()
        assert "  " not in delete_words(text, words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HE and He and he.", "and and ."),
        ("the other hero", "the other hero"),
        ("he", ""),
        ("  he is\n\nhere ", "is here"),
        ("he's", "'s"),
    ],
)
def test_words_are_deleted_in_any_case(text: str, expected: str):
    assert delete_words(text, ["he", "she"]) == expected


def test_sets_of_documents_are_made_of_the_ambiguous_ones(shift):
    groups = bios().load()
    found = variants(shift(word_pairs=PAIRS), groups)
    ambiguous = [text for text, a in zip(groups.texts, groups.is_ambiguous, strict=True) if a]
    assert len(ambiguous) > NUM_EXCHANGED
    assert found["shown"] == ambiguous[:NUM_EXCHANGED]
    words = [word for pair in PAIRS for word in pair]
    assert found["deleted"] == [delete_words(text, words) for text in groups.texts]
    holds = [text for text in ambiguous if set(re.findall(r"\w+", text.lower())) & set(words)]
    for side in (0, 1):
        expected = [exchanged(text, PAIRS, side) for text in holds[:NUM_EXCHANGED]]
        assert found[f"exchanged_{side}"] == expected
    assert set(found) == {"shown", "deleted", "exchanged_0", "exchanged_1"}


def test_too_few_documents_with_a_word_are_refused_with_the_override(shift):
    texts = ["nothing here"] * 60 + ["he is here"] * (MIN_EXCHANGED - 1)
    group = np.arange(len(texts)) % 2
    group[60:] = 0
    splits = np.array([""] * len(texts))
    groups = LabelledTexts(texts, group, group.copy(), splits, ("a", "b"), ("x", "y"))
    with pytest.raises(
        ValueError,
        match=rf"at least {MIN_EXCHANGED} documents .*; {MIN_EXCHANGED - 1} do\. Set "
        r"shift\.word_pairs=\[\[.*words of gender, or shift\.word_pairs=\[\] shift\.examples=",
    ):
        variants(shift(), groups)
    enough = groups._replace(texts=[*texts[:59], "He too", *texts[60:]])
    assert len(variants(shift(), enough)["exchanged_1"]) == MIN_EXCHANGED


def examples(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_examples_stand_for_exchanged_documents(shift, tmp_path: Path):
    rows = [{"text": f"example {i}", "gender": ("male", "female")[i % 3 % 2]} for i in range(9)]
    groups = bios().load()
    path = examples(tmp_path / "e.jsonl", rows)
    found = variants(shift(word_pairs=[], examples=path), groups)
    assert set(found) == {"shown", "exchanged_0", "exchanged_1"}
    for side, value in enumerate(groups.values):
        expected = [row["text"] for row in rows if row["gender"] == value]
        assert found[f"exchanged_{side}"] == expected
    assert "deleted" in variants(shift(examples=path), groups)


WRONG_EXAMPLES = {
    "too few": (
        [{"text": "a", "gender": "male"}] * 3 + [{"text": "b", "gender": "female"}],
        "two documents with gender=female, it holds 1",
    ),
    "no attribute": ([{"text": "a", "sex": "male"}], "row 1: field 'gender' is not there"),
    "no text": ([{"body": "a", "gender": "male"}], "row 1: field 'text' is not there"),
}


@pytest.mark.parametrize("case", WRONG_EXAMPLES)
def test_wrong_examples_are_refused_with_their_own_override(case: str, shift, tmp_path: Path):
    rows, message = WRONG_EXAMPLES[case]
    path = examples(tmp_path / "e.jsonl", rows)
    with pytest.raises(ValueError, match=message) as caught:
        variants(shift(word_pairs=[], examples=path), bios().load())
    assert "shift.examples" in str(caught.value)
    # Nothing of labelled.* and shift.label decides how examples are read.
    assert "set labelled." not in str(caught.value)
    assert "set shift.label" not in str(caught.value)


@pytest.mark.parametrize("use", ["variants", "write_documents"])
def test_examples_that_are_not_there_are_called_by_their_own_name(
    use: str, make_study: Callable[..., Study], shift, tmp_path: Path
):
    groups = bios().load()
    settings = shift(word_pairs=[], examples=str(tmp_path / "no.jsonl"))
    study = make_study(tmp_path, shift=settings)
    refused = pytest.raises(ValueError, match=r"shift\.examples.*no\.jsonl")
    with refused:
        variants(settings, groups) if use == "variants" else write_documents(study, groups)


def test_all_sets_are_stored_and_made_again_when_something_changes(
    make_study: Callable[..., Study], shift, tmp_path: Path
):
    groups = bios(num_documents=80).load()
    study = make_study(tmp_path)
    made = write_documents(study, groups)
    for name, texts in {"documents": groups.texts, **variants(study.shift, groups)}.items():
        assert datasets.Dataset.load_from_disk(made.path / name)["text"][:] == texts
        assert made.manifest[f"num_{name}"] == len(texts)
    assert write_documents(study, groups).path == made.path
    other = make_study(tmp_path, shift=shift(word_pairs=PAIRS[:1]))
    assert write_documents(other, groups).path != made.path
    fewer = groups.take(np.arange(79))
    assert write_documents(study, fewer).path != made.path
    more_candidates = make_study(tmp_path, shift=shift(num_candidates=3))
    assert write_documents(more_candidates, groups).path == made.path


def test_documents_that_an_sae_has_seen_and_repeats_are_left_out(
    make_study: Callable[..., Study], corpus_files: dict[str, str], tmp_path: Path
):
    def lines(split: str) -> list[str]:
        return [json.loads(line)["text"] for line in open(corpus_files[split], encoding="utf-8")]

    seeds, tests = lines("seeds"), lines("general_test")
    fresh = [f"fresh document {i}" for i in range(10)]
    texts = [
        *fresh,
        seeds[0].upper(),
        f"  {tests[1]}\n",
        fresh[0],
        "FRESH  document 3",
        " ",
        "",
        "",
    ]
    file = tmp_path / "labelled.jsonl"
    rows = [{"text": t, "profession": "ab"[i % 2], "gender": "xy"[i // 2 % 2]}
            for i, t in enumerate(texts)]  # fmt: skip
    labelled = LabelledFile(
        label="profession", spurious="gender", path=examples(file, rows), text_field="text",
        split_field="split",
    )  # fmt: skip
    groups, left_out = load_groups(make_study(tmp_path, labelled=labelled))
    assert groups.texts == fresh
    assert left_out == {"num_seen_by_saes": 2, "num_repeats": 2, "num_empty": 3}
