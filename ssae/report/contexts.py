"""The texts on which a latent fires, cut into the pieces that the page shades."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssae.report.marks import Style
from ssae.report.table import SAES, ordered

TOKENS_BEFORE, TOKENS_AFTER = 32, 12  # around the peak: three lines of a phone or one of a desk
MARKS = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


class Piece(NamedTuple):
    """A shaded token, or the silent tokens between two shaded ones as one piece."""

    text: str
    activation: float
    shade: float
    """activation / largest activation on the card's side, 0 to 1."""
    peak: bool


def visible(text: str) -> str:
    """Return `text` on one line: line ends and tabs as marks, long runs of spaces shortened.

    >>> visible("a" + chr(10) + " " * 8 + "b") == "a" + chr(0x21b5) + chr(0xb7) * 3 + "b"
    True
    """
    for character, mark in MARKS.items():
        text = text.replace(character, mark)
    if text.isspace():
        text = text.replace(" ", "\xb7")
    return re.sub(r"[ \xb7]{2,}", lambda match: "\xb7" * min(len(match[0]), 3), text)


def pieces(context: Mapping[str, Any], largest: float) -> list[Piece]:
    """Return the window of the context around its peak."""
    tokens, peak = context["tokens"], context["peak"]
    start, stop = max(0, peak - TOKENS_BEFORE), min(len(tokens), peak + TOKENS_AFTER + 1)
    found = [Piece("\u2026", 0.0, 0.0, False)] if start > 0 else []
    for place in range(start, stop):
        activation = _active(context["activations"][place])
        if activation == 0 and place != peak:
            if found and found[-1].shade == 0 and not found[-1].peak:
                found[-1] = found[-1]._replace(text=found[-1].text + tokens[place])
            else:
                found.append(Piece(tokens[place], 0.0, 0.0, False))
        else:
            shade = min(1.0, activation / largest) if largest > 0 else 0.0
            found.append(Piece(tokens[place], activation, shade, place == peak))
    if stop < len(tokens):
        found.append(Piece("\u2026", 0.0, 0.0, False))
    return found


def latent_card(latent: Mapping[str, Any], styles: Mapping[str, Style]) -> dict[str, Any]:
    """Return what the page shows of one latent: its numbers and, per SAE, its shaded contexts."""
    sides = []
    for sae in ordered(latent["contexts"], SAES):
        contexts = latent["contexts"][sae]
        largest = max((_active(a) for c in contexts for a in c["activations"]), default=0.0)
        colour = styles[sae].colour if sae in styles else "#808080"
        sides.append(
            {
                "sae": sae,
                "rgb": " ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5)),
                "firing_rate": latent["firing_rates"].get(sae),
                "contexts": [{**c, "pieces": pieces(c, largest)} for c in contexts],
                "peaks": peak_tokens(contexts),
            }
        )
    return {
        "latent": latent["latent"],
        "origin": latent.get("origin", "kept"),
        "log_ratio": latent["log_ratio"],
        "decoder_cosine": latent["decoder_cosine"],
        "sides": sides,
    }


def _active(activation: float | None) -> float:
    """Return what can be shaded: NaN, None and infinity are no activations."""
    return max(0.0, activation) if activation is not None and math.isfinite(activation) else 0.0


def peak_tokens(contexts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the distinct peak tokens, the most frequent first: what one reads before opening."""
    tokens = [visible(context["tokens"][context["peak"]]).strip() for context in contexts]
    return sorted(set(tokens), key=lambda token: (-tokens.count(token), tokens.index(token)))[:5]
