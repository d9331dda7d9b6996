"""The documents of `ssae shift`, and the same with words exchanged or deleted.

documents/                 what probes are trained and tested on
deleted/                   the same without the words of shift.word_pairs
exchanged_0/, exchanged_1/ some of them, all words of a pair the first, or the second; of
                           shift.examples its documents of either value
shown/                     some of them, whose tokens the page shows
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ssae.artifact.manifest import file_sha256
from ssae.artifact.store import Artifact, build
from ssae.corpus.base import SPLITS, fingerprint, load_split
from ssae.labelled.base import LabelledTexts
from ssae.labelled.files import LabelledFile
from ssae.mix import documents_for
from ssae.probe.settings import Shift
from ssae.read_pool import read_corpus
from ssae.study import Study

NUM_EXCHANGED = NUM_SHOWN = 200
MIN_EXCHANGED = 20


def load_groups(study: Study) -> tuple[LabelledTexts, dict[str, int]]:
    """Return the documents that no SAE has seen, and how many were left out for what.

    Seeds, tests and pool documents that a compared arm, or one it starts from, learns from are none
    of them, nor are repeats and documents without text.
    """
    groups = study.labelled.load()
    arms = dict.fromkeys(arm for name in study.shift.arms for arm in study.line(name))
    corpus = read_corpus(study)
    known = {fingerprint(text) for name in SPLITS[1:] for text in load_split(corpus, name)["text"]}
    for arm in arms:
        if study.arms[arm].num_tokens == 0:  # a saved SAE as it is
            continue
        documents = datasets.Dataset.load_from_disk(documents_for(study, arm).path / "documents")
        known |= {fingerprint(text) for text in documents["text"]}
    left_out = {"num_seen_by_saes": 0, "num_repeats": 0, "num_empty": 0}
    seen: set[str] = set()
    kept = []
    for row, text in enumerate(groups.texts):
        key = fingerprint(text)
        reason = (
            "num_empty" if not text.strip()
            else "num_seen_by_saes" if key in known
            else "num_repeats" if key in seen
            else None
        )  # fmt: skip
        seen.add(key)
        if reason is None:
            kept.append(row)
        else:
            left_out[reason] += 1
    return groups.take(np.array(kept, dtype=np.int64)), left_out


def write_documents(study: Study, groups: LabelledTexts) -> Artifact:
    """Return the artifact with all variants of the documents."""
    shift = study.shift
    inputs = {
        "labelled": study.labelled,
        "identity": study.labelled.identity(),
        "num_documents": len(groups.texts),
        "fingerprints": [fingerprint(text)[:16] for text in groups.texts],
        "word_pairs": shift.word_pairs,
        "examples": None if shift.examples is None else file_sha256(_examples_file(shift.examples)),
        "format": 1,
    }

    def make(folder: Path) -> dict[str, Any]:
        sets = {"documents": groups.texts, **variants(shift, groups)}
        for name, texts in sets.items():
            datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / name)
        return {f"num_{name}": len(texts) for name, texts in sets.items()}

    return build(study.artifacts, "labelled", inputs, make)


def variants(shift: Shift, groups: LabelledTexts) -> dict[str, list[str]]:
    """Return the texts of every set but the documents themselves."""
    first = np.flatnonzero(groups.is_ambiguous)[:NUM_SHOWN]
    found = {"shown": [groups.texts[row] for row in first]}
    words = [word for pair in shift.word_pairs for word in pair]
    if words:
        found["deleted"] = [delete_words(text, words) for text in groups.texts]
    if shift.examples is not None:
        found |= _examples(shift, groups)
    elif words:
        holds = _pattern(words)
        texts = [groups.texts[row] for row in np.flatnonzero(groups.is_ambiguous)]
        texts = [text for text in texts if holds.search(text)][:NUM_EXCHANGED]
        if len(texts) < MIN_EXCHANGED:
            raise ValueError(
                f"at least {MIN_EXCHANGED} documents must hold a word of shift.word_pairs, so that "
                f"exchanging words tells what a latent reads; {len(texts)} do. Set "
                f"shift.word_pairs=[[WORD,COUNTERPART],...] to words of {shift.spurious}, or "
                "shift.word_pairs=[] shift.examples=FILE.jsonl"
            )
        for side in (0, 1):
            exchanged = [exchange_words(text, shift.word_pairs, side) for text in texts]
            found[f"exchanged_{side}"] = exchanged
    return found


def exchange_words(text: str, pairs: Sequence[Sequence[str]], side: int) -> str:
    """Return the text with each word of a pair replaced by the pair's word number `side`.

    A word of several pairs stands for its counterpart in the last of them. Capitals are kept.

    >>> exchange_words("He praised Her and his men.", [["he", "she"], ["his", "her"]], 1)
    'She praised Her and her men.'
    """
    counterpart = {pair[1 - side].lower(): pair[side] for pair in pairs}
    if not counterpart:
        return text

    def replace(match: re.Match[str]) -> str:
        word = counterpart[match[0].lower()]
        if match[0].isupper() and len(match[0]) > 1:
            return word.upper()
        return word[0].upper() + word[1:] if match[0][0].isupper() else word

    return _pattern(counterpart).sub(replace, text)


def delete_words(text: str, words: Iterable[str]) -> str:
    """Return the text without the words.

    >>> delete_words("Mr. Gupta sold his car; he walks.", ["mr", "his", "he"])
    '. Gupta sold car; walks.'
    """
    return re.sub(r"\s{2,}", " ", _pattern(words).sub("", text)).strip()


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    return re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


def _examples(shift: Shift, groups: LabelledTexts) -> dict[str, list[str]]:
    """Return the documents of shift.examples by the attribute's value."""
    assert shift.examples is not None
    source = LabelledFile(
        label=shift.spurious, spurious=shift.spurious, path=str(_examples_file(shift.examples)),
        text_field="text", split_field="", values=list(groups.values),
        classes=list(groups.values),
    )  # fmt: skip
    try:
        rows = list(source.rows())
    except ValueError as error:
        raise ValueError(
            f"shift.examples: {error.args[0].split('; set')[0]}; a line must be "
            f'{{"text": ..., "{shift.spurious}": ...}}; set shift.examples=<such a file>'
        ) from error
    found = {}
    for side, value in enumerate(groups.values):
        texts = [row["text"] for row in rows if row["spurious"] == value]
        if len(texts) < 2:
            raise ValueError(
                f"shift.examples={shift.examples} must hold at least two documents with "
                f"{shift.spurious}={value}, it holds {len(texts)}"
            )
        found[f"exchanged_{side}"] = texts
    return found


def _examples_file(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"shift.examples: there is no file {file}; set shift.examples=FILE.jsonl, or null"
        )
    return file
