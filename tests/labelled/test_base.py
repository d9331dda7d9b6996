import dataclasses
from collections import Counter

import numpy as np
import pytest

from ssae.labelled.base import Labelled, checked_row

FIELDS = ("text", "profession", "gender", "split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Labelled):
    """Documents in memory: (label, spurious) each, or with a split."""

    documents: list

    def rows(self):
        for place, (label, spurious, *split) in enumerate(self.documents):
            yield {
                "text": f"text {place}", "label": label, "spurious": spurious,
                "split": split[0] if split else None,
            }  # fmt: skip

    def identity(self):
        return {}


def given(documents: list, **changes) -> Given:
    return Given(**{"label": "profession", "spurious": "gender", "documents": documents} | changes)


def repeated(counts: dict[str, int]) -> list[tuple[str, str]]:
    """{"nurse male": 3} as three documents, not in blocks."""
    found = [tuple(name.split()) for name, number in counts.items() for _ in range(number)]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


UNEVEN = {"nurse male": 2, "nurse female": 7, "surgeon male": 6, "surgeon female": 3}


def test_groups_are_counted_as_the_documents_are():
    documents = repeated(UNEVEN)
    groups = given(documents).load()
    counted = Counter(f"{label}, {spurious}" for label, spurious in documents)
    assert dict(zip(groups.names, groups.counts.tolist(), strict=True)) == counted
    for place, (label, spurious) in enumerate(documents):
        assert groups.classes[groups.label[place]] == label
        assert groups.values[groups.spurious[place]] == spurious
        assert groups.names[groups.group[place]] == f"{label}, {spurious}"
    assert groups.texts == [f"text {place}" for place in range(len(documents))]


def test_every_group_is_spelt_with_its_size():
    groups = given(repeated({"a x": 1200, "a y": 1, "b x": 2, "b y": 3})).load()
    assert groups.spell_counts() == "a, x: 1,200; a, y: 1; b, x: 2; b, y: 3"


@pytest.mark.parametrize("swapped", [False, True])
def test_values_are_ordered_so_that_the_common_pairs_are_ambiguous(swapped: bool):
    # In the order of the alphabet a goes with x.
    names = ("a y", "a x", "b y", "b x") if swapped else ("a x", "a y", "b x", "b y")
    groups = given(repeated(dict(zip(names, (9, 2, 3, 8), strict=True)))).load()
    assert groups.classes == ("a", "b")
    assert groups.values == (("y", "x") if swapped else ("x", "y"))
    assert groups.counts.tolist() == [9, 2, 3, 8]
    assert groups.is_ambiguous.sum() == 17


def test_the_biased_set_decides_by_the_smaller_of_its_groups():
    # a goes with y in 20 of 21, but a set of (a, y) and (b, x) has one document of each.
    groups = given(repeated({"a x": 1, "a y": 20, "b x": 1, "b y": 2})).load()
    assert groups.values == ("x", "y")
    groups = given(repeated({"a x": 1, "a y": 20, "b x": 2, "b y": 2})).load()
    assert groups.values == ("y", "x")


def test_classes_and_values_that_are_given_keep_their_order_and_leave_the_others_out():
    documents = repeated(UNEVEN | {"chef male": 5, "nurse other": 4})
    groups = given(documents, classes=["surgeon", "nurse"], values=["female", "male"]).load()
    assert (groups.classes, groups.values) == (("surgeon", "nurse"), ("female", "male"))
    assert groups.counts.tolist() == [3, 6, 7, 2]
    kept = [f"text {i}" for i, pair in enumerate(documents) if {"chef", "other"}.isdisjoint(pair)]
    assert groups.texts == kept


def test_values_are_those_of_the_chosen_classes_only():
    documents = repeated(UNEVEN | {"chef other": 5})
    assert given(documents, classes=["surgeon", "nurse"]).load().counts.sum() == 18
    with pytest.raises(ValueError, match="'profession' must have two values, it has 3"):
        given(documents).load()


def test_splits_are_kept_and_a_missing_one_is_empty():
    documents = [("a", "x", "train"), ("b", "y", None), ("a", "y", "test"), ("b", "x", "")]
    groups = given(documents).load()
    assert groups.splits.tolist() == ["train", "", "test", ""]


def test_taken_documents_keep_what_belongs_to_them():
    documents = [(*pair, f"s{i}") for i, pair in enumerate(repeated(UNEVEN))]
    groups = given(documents).load()
    rows = np.array([5, 0, 11])
    taken = groups.take(rows)
    assert taken.texts == ["text 5", "text 0", "text 11"]
    assert taken.splits.tolist() == ["s5", "s0", "s11"]
    assert [taken.names[g].split(", ") for g in taken.group] == [
        list(documents[row][:2]) for row in rows
    ]
    assert taken.classes == groups.classes
    assert groups.take(np.array([], dtype=np.int64)).counts.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("number", [1, 3])
def test_other_than_two_values_are_refused_with_what_there_is(number: int):
    documents = [("abc"[i % number], "xy"[i % 2]) for i in range(1500)]
    counted = rf"it has {number} \(.*a: {1500 // number:,}.*set shift\.classes=\["
    with pytest.raises(ValueError, match=rf"'profession' must have two values, {counted}"):
        given(documents).load()
    documents = [("xy"[i % 2], "abc"[i % number]) for i in range(1500)]
    counted = counted.replace("classes", "values")
    with pytest.raises(ValueError, match=rf"'gender' must have two values, {counted}"):
        given(documents).load()


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match=r"it has 0 \(no documents\)"):
        given([]).load()


def test_a_class_that_does_not_occur_is_refused_with_the_nearest():
    documents = repeated(UNEVEN)
    with pytest.raises(
        ValueError,
        match=r"profession='surgon'; did you mean surgeon\? .*nurse: 9, .*set shift\.classes=",
    ):
        given(documents, classes=["nurse", "surgon"]).load()
    with pytest.raises(
        ValueError, match=r"gender='q'; there are female: 10, male: 8.*set shift\.values="
    ):
        given(documents, values=["male", "q"]).load()


def test_a_value_that_only_other_classes_have_is_refused():
    documents = repeated(UNEVEN | {"chef other": 5})
    with pytest.raises(ValueError, match=r"gender='other'; .*set shift\.values="):
        given(documents, classes=["surgeon", "nurse"], values=["male", "other"]).load()


@pytest.mark.parametrize("name", ["classes", "values"])
@pytest.mark.parametrize(
    "wrong", ["professor", ["professor"], ["nurse", "nurse"], ["a", "b", "c"], ["a", "b", "a"], 5]
)
def test_what_is_no_pair_is_refused_with_the_override(name: str, wrong):
    with pytest.raises(
        ValueError, match=rf"shift\.{name} must be null or a list of two .*got .*set shift\.{name}="
    ):
        given([], **{name: wrong})


def test_a_field_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"labelled\.label must be a text, got 7; set labelled\."):
        given([], label=7)


def test_a_row_is_read_by_the_names_of_its_fields():
    row = {"text": "words", "profession": 1, "gender": "male", "split": 3, "more": None}
    names = {"profession": ["nurse", "surgeon"], "gender": ["unused", "names"]}
    assert checked_row(row, 1, "f", FIELDS, names) == {
        "text": "words", "label": "surgeon", "spurious": "male", "split": "3"
    }  # fmt: skip
    assert checked_row(row, 1, "f", FIELDS, {})["label"] == "1"
    assert checked_row(row, 1, "f", (*FIELDS[:3], "none"), {})["split"] is None


@pytest.mark.parametrize(
    ("field", "option"),
    [("text", "labelled.text_field"), ("profession", "shift.label"), ("gender", "shift.spurious")],
)
def test_a_row_without_a_field_names_row_fields_and_override(field: str, option: str):
    row = {"text": "words", "profession": "nurse", "gender": "male"}
    option = option.replace(".", r"\.")
    missing = {key: value for key, value in row.items() if key != field} | {f"{field}s": "x"}
    with pytest.raises(
        ValueError,
        match=rf"file, row 7: field '{field}' is not there; its fields are .*{field}s; "
        rf"set {option}={field}s",
    ):
        checked_row(missing, 7, "file", FIELDS, {})
    with pytest.raises(ValueError, match=rf"field '{field}' is empty; .*set {option}=<one of"):
        checked_row(row | {field: None}, 7, "file", FIELDS, {})


def test_a_text_that_is_none_is_refused():
    row = {"text": ["a", "list"], "profession": "nurse", "gender": "male"}
    with pytest.raises(
        ValueError, match=r"row 2: 'text' must be a text, got a list; set labelled\.text_field="
    ):
        checked_row(row, 2, "file", FIELDS, {})


@pytest.mark.parametrize("value", [2, -1])
def test_a_number_without_a_name_is_refused(value: int):
    row = {"text": "words", "profession": "nurse", "gender": value}
    with pytest.raises(ValueError, match=rf"gender={value} has no name: labelled\.names\.gender"):
        checked_row(row, 2, "file", FIELDS, {"gender": ["male", "female"]})
