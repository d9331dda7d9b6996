"""A number of one SAE beside the same number of another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ssae.report.table import Metric, find, finite, spell, spell_change

SUBJECT = "specialist"
LOSSES = ("fvu", "perplexity_spliced")
TAIL = ("tail_recall", "tail_error")
WORDS = {
    "fvu": "fvu",
    "perplexity_spliced": "spliced perplexity",
    "tail_recall": "tail recall",
    "tail_error": "tail error",
}


class Change(NamedTuple):
    """One number of an SAE beside the same number of a reference SAE."""

    name: str
    reference: str
    new: float
    old: float
    unclear: bool | None
    """Whether the 95 % interval of the paired difference holds 0 (without one: whether the two
    intervals overlap); None where no interval was computed."""

    @property
    def relative(self) -> float:
        """(new - old) / old; infinite from zero to something."""
        if self.old == 0:
            return 0.0 if self.new == 0 else math.copysign(math.inf, self.new)
        return (self.new - self.old) / self.old

    @property
    def direction(self) -> int:
        """-1 lower, 0 the same to the printed precision, 1 higher."""
        shown = spell_change(self.relative)
        return 0 if shown == "0.0%" else (-1 if self.relative < 0 else 1)

    @property
    def text(self) -> str:
        """The change with both numbers."""
        verb = {-1: "is lower", 0: "is the same", 1: "is higher"}[self.direction]
        notes = [spell_change(self.relative)] if math.isfinite(self.relative) else []
        notes += ["within the 95 % interval"] if self.unclear else []
        note = f" ({'; '.join(notes)})" if notes else ""
        return f"{WORDS[self.name]} {verb}, {spell(self.new)} against {spell(self.old)}{note}"


def compare(
    metrics: Sequence[Metric],
    name: str,
    split: str,
    reference: str,
    *,
    sae: str = SUBJECT,
    band: str = "all",
) -> Change | None:
    """Return the change of `name` from `reference` to `sae`, or None where one is not measured."""
    new = find(metrics, name, sae=sae, split=split, band=band)
    old = find(metrics, name, sae=reference, split=split, band=band)
    new_value, old_value = finite(new), finite(old)
    if new_value is None or old_value is None:
        return None
    difference = find(
        metrics, f"{name}_difference", sae=sae, split=split, band=band, reference=reference
    )
    low, high = finite(difference, "low"), finite(difference, "high")
    if low is None or high is None:
        bounds = [finite(row, key) for row in (new, old) for key in ("low", "high")]
        if None in bounds:
            return Change(name, reference, new_value, old_value, None)
        new_low, new_high, old_low, old_high = (bound or 0.0 for bound in bounds)
        return Change(
            name, reference, new_value, old_value, new_low <= old_high and old_low <= new_high
        )
    return Change(name, reference, new_value, old_value, low <= 0 <= high)
