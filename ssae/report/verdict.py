"""What the numbers say, in plain words: computed, so that it cannot say more than they do."""

from collections.abc import Sequence
from typing import NamedTuple

from ssae.report.change import LOSSES, SUBJECT, TAIL, WORDS, Change, compare
from ssae.report.table import BANDS, MIN_TOKENS, Metric, find, finite, spell, spell_change


class Verdict(NamedTuple):
    """The answer and what it rests on."""

    answer: str
    reasons: list[str]


def verdict(metrics: Sequence[Metric]) -> Verdict:
    """Return whether the specialist beat the generalist and the control on the subdomain."""
    wanted = [(name, other) for other in ("generalist", "control") for name in LOSSES]
    found = {key: compare(metrics, key[0], "subdomain_test", key[1]) for key in wanted}
    changes = [change for change in found.values() if change is not None]
    missing = [
        f"{WORDS[name]} against the {other}" for (name, other) in wanted if not found[name, other]
    ]
    if not changes:
        return Verdict(
            f"No verdict: no {SUBJECT} was measured on the subdomain's test split beside a "
            "generalist or a control.",
            [],
        )
    tail = [
        change
        for other in (*_MEANING, "specialist_erm")
        for name in TAIL
        if (change := compare(metrics, name, "subdomain_test", other))
    ]
    reasons = [
        f"Against the {other} ({_MEANING[other]}): "
        + "; ".join(c.text for c in [*changes, *tail] if c.reference == other)
        + "."
        for other in ("generalist", "control")
        if any(change.reference == other for change in changes)
    ]
    if not any(change.name == "tail_recall" for change in tail):
        reasons.append("Tail recall was not measured.")
    reasons += _erm(metrics) + _forgetting(metrics) + _budget(metrics)
    if any(change.unclear is None for change in [*changes, *tail]):
        reasons.append("Not every number has an interval: a small difference may be chance.")
    return Verdict(_answer(changes, missing) + _tail_recall(tail), reasons)


_CALLED = {"specialist_erm": "ERM specialist"}
_MEANING = {"generalist": "where it started", "control": "fine-tuned on random pool documents"}


def _answer(changes: list[Change], missing: list[str]) -> str:
    lower = [change for change in changes if change.direction < 0]
    others = [change for change in changes if change.direction >= 0]
    if not others:
        text = f"Yes: on the subdomain's test split the {SUBJECT} has lower {_list(lower)}."
        if missing:
            text = f"Yes, as far as measured: the {SUBJECT} has lower {_list(lower)}."
        unsure = [change for change in lower if change.unclear]
        if unsure:
            text = text.replace("Yes", "Yes, but not clearly", 1)
            shown = ", ".join(f"{WORDS[c.name]} against the {c.reference}" for c in unsure)
            text += f" The 95 % interval of the difference holds 0 for {shown}."
    elif not lower:
        text = (
            f"No: on the subdomain's test split the {SUBJECT} does not have lower {_list(others)}."
        )
    else:
        text = (
            f"Only in part: on the subdomain's test split the {SUBJECT} has lower {_list(lower)}, "
            f"but not lower {_list(others)}."
        )
    return text + (f" Not measured: {', '.join(missing)}." if missing else "")


def _tail_recall(changes: Sequence[Change]) -> str:
    """Say against whom tail recall rose: only where the interval of the difference excludes 0."""
    found: dict[str, list[str]] = {}
    for change in changes:
        if change.name == "tail_recall":
            if change.unclear or change.direction == 0:
                words = "did not clearly change"
            else:
                words = "rose" if change.direction > 0 else "fell"
                words += " (no interval)" if change.unclear is None else ""
            who = _CALLED.get(change.reference, change.reference)
            found.setdefault(words, []).append(f"the {who}")
    parts = [f"{words} against {_and(who)}" for words, who in found.items()]
    return f" Tail recall {_and(parts)}." if parts else ""


def _and(words: Sequence[str]) -> str:
    first = ", ".join(words[:-1])
    return f"{first} and {words[-1]}" if first else words[-1]


def _list(changes: list[Change]) -> str:
    names = list(dict.fromkeys(change.name for change in changes))
    references = [{c.reference for c in changes if c.name == name} for name in names]
    if all(other == references[0] for other in references):
        who = " and ".join(f"the {name}" for name in _MEANING if name in references[0])
        return f"{' and '.join(WORDS[name] for name in names)} than {who}"
    return ", ".join(f"{WORDS[c.name]} than the {c.reference}" for c in changes)


def _erm(metrics: Sequence[Metric]) -> list[str]:
    names = (*LOSSES, *TAIL)
    changes = [compare(metrics, name, "subdomain_test", "specialist_erm") for name in names]
    texts = [change.text for change in changes if change]
    return [f"Tilted risk against ERM on the same documents: {'; '.join(texts)}."] if texts else []


def _forgetting(metrics: Sequence[Metric]) -> list[str]:
    """Say what general text paid, against both references: training more may improve it too."""
    sentences = []
    for other in ("generalist", "control"):
        found = [compare(metrics, name, "general_test", other) for name in LOSSES]
        changes = [change for change in found if change is not None]
        if not changes:
            continue
        worse = [change for change in changes if change.direction > 0]
        price = "worse than" if worse else "not worse than"
        if worse and len(worse) < len(changes):
            price = "worse in one of two numbers than"
        text = "; ".join(change.text for change in changes)
        sentences.append(f"General text is {price} with the {other}: {text}.")
    return sentences or ["What happened to general text was not measured."]


def _budget(metrics: Sequence[Metric]) -> list[str]:
    """Say when the comparison is not at equal l0: more latents a token lower fvu by themselves."""
    texts = []
    for other in ("generalist", "control"):
        change = compare(metrics, "l0", "subdomain_test", other)
        if change and change.relative > 0.02:
            texts.append(f"{spell(change.old)} in the {other}")
    if not texts:
        return []
    row = find(metrics, "l0", sae=SUBJECT, split="subdomain_test")
    return [
        f"Not at equal sparsity: the {SUBJECT} uses {spell(finite(row))} latents a token there, "
        f"{' and '.join(texts)}, and more latents lower both numbers by themselves."
    ]


def describe_bands(metrics: Sequence[Metric], name: str, split: str) -> str:
    """Return in one sentence where, by token frequency, the specialist gains and loses most."""
    changes = [
        (band, change)
        for band in BANDS
        if (change := compare(metrics, name, split, "generalist", band=band))
        and _num_tokens(metrics, name, split, band) >= MIN_TOKENS
    ]
    if not changes:
        return ""
    lower = sum(change.direction < 0 for _, change in changes)
    low_band, low = min(changes, key=lambda pair: pair[1].relative)
    high_band, high = max(changes, key=lambda pair: pair[1].relative)
    text = (
        f"{SUBJECT} against generalist: lower in {lower} of {len(changes)} bands; "
        f"from {spell_change(low.relative)} in band {low_band}"
    )
    return f"{text} to {spell_change(high.relative)} in band {high_band} (per million tokens)."


def _num_tokens(metrics: Sequence[Metric], name: str, split: str, band: str) -> float:
    row = find(metrics, name, sae=SUBJECT, split=split, band=band)
    return MIN_TOKENS if row is None else row.get("num_tokens") or MIN_TOKENS
