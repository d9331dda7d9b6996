import functools
import hashlib
import math
import random
import re
from collections import Counter

import pytest

from ssae.artifact.store import content_hash
from ssae.labelled.synthetic import NEUTRAL, OPENINGS, TRADES, biography
from tests.conftest import biographies

CUES = {
    "male": {"he", "his", "him", "mr", "wife"},
    "female": {"she", "her", "ms", "husband"},
}
FACTS = {
    "title": r"(?:Mr\.|Ms\.|Dr\.)", "surname": "[A-Z][a-z]+", "place": "[A-Z][a-z]+",
    "year": r"\d{4}", "number": r"\d+", "partner": "[a-z]+", "He": r"[A-Z][a-z]+",
    "he": r"[A-Za-z]+", "him": r"[A-Za-z]+", "his": r"[A-Za-z]+(?:'s)?",
    "His": r"[A-Z][a-z]+(?:'s)?",
}  # fmt: skip


def pattern(template: str) -> re.Pattern[str]:
    """What a template can become."""
    parts = re.split(r"\{(\w+)\}", template)
    parts = [FACTS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(parts))


def sentences(text: str) -> list[str]:
    """The templates of a biography's sentences, in order."""
    templates = [*OPENINGS, *NEUTRAL, *(t for own in TRADES.values() for t in own)]
    found = []
    while text:
        hits = [(match.end(), t) for t in templates if (match := pattern(t).match(text))]
        assert hits, text
        end, template = max(hits)
        found.append(template)
        text = text[end:].removeprefix(" ")
    return found


def trades_of(text: str) -> list[str]:
    """The trades that a biography's sentences are about."""
    return [trade for t in sentences(text) for trade, own in TRADES.items() if t in own]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


bios = functools.partial(biographies, num_documents=400, correlation=0.8, cues=0.5)


def some(num: int = 100, trade: str = "nurse", gender: str = "female", **chances) -> list[str]:
    generator = random.Random(0)
    return [biography(generator, trade, gender, **chances) for _ in range(num)]


def test_a_biography_is_an_opening_work_and_some_neutral_sentences():
    for text in some(purity=1.0, cues=0.5):
        first, *rest = sentences(text)
        assert first in OPENINGS
        assert len(rest) in (3, 4)
        assert len(trades_of(text)) == 2
        assert sum(template in NEUTRAL for template in rest) == len(rest) - 2
        assert "{" not in text


@pytest.mark.parametrize("trade", TRADES)
def test_a_pure_biography_is_about_one_trade_and_an_impure_one_about_others(trade: str):
    for text in some(30, trade=trade, purity=1.0, cues=1.0):
        assert trades_of(text) == [trade, trade]
    for text in some(30, trade=trade, purity=0.0, cues=1.0):
        assert trade not in trades_of(text)


@pytest.mark.parametrize("gender", ["male", "female"])
def test_cues_tell_the_gender_in_every_sentence_or_in_none(gender: str):
    other = CUES["male" if gender == "female" else "female"]
    for text in some(gender=gender, purity=0.8, cues=1.0):
        assert words(text) & CUES[gender]
        assert not words(text) & other
        assert "Dr." not in text
    for text in some(gender=gender, purity=0.8, cues=0.0):
        assert not words(text) & (CUES["male"] | CUES["female"])
        assert text.count("Dr.") == 1


def test_without_cues_both_genders_have_the_same_biographies():
    male, female = (some(gender=gender, purity=0.8, cues=0.0) for gender in CUES)
    assert male == female


@pytest.mark.parametrize(("purity", "cues"), [(0.7, 0.25), (0.4, 0.6)])
def test_purity_and_cues_are_the_shares_of_sentences(purity: float, cues: float):
    texts = some(500, purity=purity, cues=cues)
    own = [trade == "nurse" for text in texts for trade in trades_of(text)]
    for found, share, num in (
        (sum(own) / len(own), purity, len(own)),
        (sum("Ms." in text for text in texts) / len(texts), cues, len(texts)),
    ):
        assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / num))


@pytest.mark.parametrize("correlation", [0.5, 0.8, 1.0])
def test_the_correlation_is_the_share_of_agreeing_documents(correlation: float):
    rows = list(bios(num_documents=1000, correlation=correlation, cues=1.0).rows())
    agree = [(row["label"] == "surgeon") == (row["spurious"] == "male") for row in rows]
    tolerance = 4 * math.sqrt(correlation * (1 - correlation) / 1000)
    assert sum(agree) / 1000 == pytest.approx(correlation, abs=tolerance)
    trades = Counter(row["label"] for row in rows)
    assert trades["nurse"] == pytest.approx(500, abs=65)
    for row in rows:  # the words are those of the row's gender
        assert words(row["text"]) & CUES[row["spurious"]]


def test_the_large_groups_are_ambiguous():
    groups = bios().load()
    names = {groups.names[group] for group in groups.group[groups.is_ambiguous]}
    assert names == {"nurse, female", "surgeon, male"}
    assert groups.counts[[0, 3]].min() > groups.counts[[1, 2]].max()


def test_classes_and_values_name_what_goes_together():
    own = bios(classes=["chef", "painter"], values=["female", "male"], purity=1.0, correlation=0.9)
    groups = own.load()
    assert groups.names[0] == "chef, female"
    assert groups.counts[0] > groups.counts[1]
    for text, label in zip(groups.texts, groups.label, strict=True):
        assert set(trades_of(text)) == {("chef", "painter")[label]}


def test_the_seed_decides_every_biography():
    first = list(bios().rows())
    assert list(bios().rows()) == first
    again = {row["text"] for row in bios(seed=1).rows()}
    assert again.isdisjoint(row["text"] for row in first)
    assert all(row["split"] is None for row in first)
    assert len({row["text"] for row in first}) == len(first) == 400


def test_arguments_decide_the_content():
    hashes = {content_hash({"labelled": own, "identity": own.identity()}) for own in (
        bios(), bios(), bios(seed=1), bios(cues=0.6), bios(correlation=0.7), bios(purity=0.8),
    )}  # fmt: skip
    assert len(hashes) == 5


def test_other_biographies_have_another_version():
    # Where this fails, SyntheticBios.identity and SyntheticBiosPool.identity must change too.
    texts = "\n".join(row["text"] for row in bios(num_documents=50).rows())
    checksum = hashlib.sha256(texts.encode()).hexdigest()[:16]
    assert (bios().identity(), checksum) == ({"version": 1}, "fffb28472b7767b3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_documents": 3}, r"num_documents must be at least 4, got 3; set labelled\.num_doc"),
        (
            {"correlation": 0.4},
            r"correlation must lie in \[0\.5, 1\], got 0\.4; set labelled\.corr",
        ),
        (
            {"correlation": 1.1},
            r"correlation must lie in \[0\.5, 1\], got 1\.1; set labelled\.corr",
        ),
        ({"purity": -0.1}, r"labelled\.purity must lie in \[0, 1\], got -0\.1; set labelled\.pur"),
        ({"cues": math.nan}, r"labelled\.cues must lie in \[0, 1\], got nan; set labelled\.cues"),
        ({"seed": "x"}, r"labelled\.seed must be a whole number, got 'x'; set labelled\.seed"),
        ({"classes": ["nurse", "poet"]}, r"of surgeon, nurse.*not of poet; set shift\.classes="),
        ({"values": ["male", "man"]}, r"male, female.*man.*set shift\.values="),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_override(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        bios(**changes).load()
