"""Labelled documents: text, the label a classifier learns, and an attribute it should not use.

The label and the spurious attribute have two values each, so that documents fall into four groups.
"""

import contextlib
import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssae.settings import check_types

Row = dict[str, Any]
"""{"text", "label", "spurious", "split"}; the split is None where the data has none."""


class WrongDocument(ValueError):
    """A document lacks a field, or a field is not what it must be: the message says which."""


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Name the file or dataset in errors of what reads it: pandas, pyarrow, gzip.

    Their errors are ValueErrors, too.
    """
    try:
        yield
    except WrongDocument:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WrongDocument(
            f"{where} cannot be read: {type(error).__name__}: {reason}; a document must be an "
            'object like {"text": ..., "profession": ..., "gender": ...}, a row with these columns'
        ) from error


class LabelledTexts(NamedTuple):
    """Documents with both attributes as 0 or 1."""

    texts: list[str]
    label: np.ndarray
    """(n,) int64: index into classes."""
    spurious: np.ndarray
    """(n,) int64: index into values."""
    splits: np.ndarray
    """(n,) of str; "" where the data has no split."""
    classes: tuple[str, str]
    """Names of the label's values."""
    values: tuple[str, str]
    """Names of the attribute's; values[i] is the one that goes with classes[i] when biased."""

    @property
    def is_ambiguous(self) -> np.ndarray:
        """(n,) bool: documents in which either attribute predicts the other."""
        return self.label == self.spurious

    @property
    def group(self) -> np.ndarray:
        """(n,) int64, 2 label + spurious: index into `names`."""
        return 2 * self.label + self.spurious

    @property
    def names(self) -> list[str]:
        """Of the four groups."""
        return [f"{c}, {v}" for c in self.classes for v in self.values]

    @property
    def counts(self) -> np.ndarray:
        """(4,) documents of each group."""
        return np.bincount(self.group, minlength=4)

    def take(self, rows: np.ndarray) -> "LabelledTexts":
        """Return some of the documents."""
        return self._replace(
            texts=[self.texts[row] for row in rows],
            label=self.label[rows],
            spurious=self.spurious[rows],
            splits=self.splits[rows],
        )

    def spell_counts(self) -> str:
        """Return the size of every group, for people."""
        pairs = zip(self.names, self.counts, strict=True)
        return "; ".join(f"{name}: {count:,}" for name, count in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """What every source of labelled documents shares; a variant overrides `rows` and `identity`.

    Args:
        label: field with what the classifier learns.
        spurious: field with the attribute it should not use.
        classes: the two values of the label that are told apart, in the order 0, 1; null takes
            those of the data, which must be two.
        values: likewise the attribute's; null takes those of the data, in the order in which
            values[i] goes with classes[i] more often.
    """

    label: str
    spurious: str
    classes: list[str] | None = None
    values: list[str] | None = None

    def __post_init__(self) -> None:
        check_types(self, "labelled.")
        for name in ("classes", "values"):
            given = getattr(self, name)
            is_pair = isinstance(given, list) and len(given) == 2 and given[0] != given[1]
            if given is not None and not is_pair:
                raise ValueError(
                    f"shift.{name} must be null or a list of two different values, got {given!r}; "
                    f"set shift.{name}=[professor,nurse]"
                )

    def rows(self) -> Iterable[Row]:
        """Yield every document."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Return what the documents depend on beside the constructor's arguments."""
        raise NotImplementedError

    def load(self) -> LabelledTexts:
        """Return the documents of the two classes.

        Raises:
            ValueError: the label or the attribute has not two values; says which there are.
        """
        rows = list(self.rows())
        classes = _two(rows, "label", self.label, "classes", self.classes)
        kept = [row for row in rows if row["label"] in classes]
        values = _two(kept, "spurious", self.spurious, "values", self.values)
        kept = [row for row in kept if row["spurious"] in values]
        label = np.array([classes.index(row["label"]) for row in kept])
        spurious = np.array([values.index(row["spurious"]) for row in kept])
        if self.values is None:
            counts = np.bincount(2 * label + spurious, minlength=4)
            # The biased set is as large as the smaller of its two groups.
            if min(counts[1], counts[2]) > min(counts[0], counts[3]):
                values, spurious = values[::-1], 1 - spurious
        splits = np.array([row["split"] or "" for row in kept], dtype=str)
        texts = [row["text"] for row in kept]
        return LabelledTexts(texts, label, spurious, splits, (*classes,), (*values,))  # pyright: ignore


def _two(
    rows: Sequence[Row], key: str, field: str, option: str, wanted: list[str] | None
) -> list[str]:
    """Return the two values of a field that are told apart."""
    counts = Counter(row[key] for row in rows)
    there = ", ".join(f"{value}: {count:,}" for value, count in counts.most_common(40))
    if wanted is not None:
        missing = [value for value in map(str, wanted) if value not in counts]
        if missing:
            near = difflib.get_close_matches(missing[0], counts, n=1)
            raise ValueError(
                f"no document has {field}={missing[0]!r}; "
                + (f"did you mean {near[0]}? " if near else "")
                + f"there are {there or 'no documents'}; set shift.{option}=[<two of these>]"
            )
        return [str(value) for value in wanted]
    if len(counts) != 2:
        raise ValueError(
            f"{field!r} must have two values, it has {len(counts)} ({there or 'no documents'}); "
            f"set shift.{option}=[<two of these>]"
        )
    return sorted(counts)


def checked_row(
    row: Row, number: int, where: str, fields: Sequence[str], names: dict[str, list[str]]
) -> Row:
    """Return {"text", "label", "spurious", "split"} of a row of any dataset.

    Args:
        row: as it is stored.
        number: of the row, for messages.
        where: the file or dataset, for messages.
        fields: names of text, label, spurious and split; the last may be absent.
        names: of a field whose values are numbers: what they stand for.

    Raises:
        ValueError: a field is missing, or the text is none.
    """
    text, label, spurious, split = fields
    options = ("labelled.text_field", "shift.label", "shift.spurious")
    for option, field in zip(options, fields, strict=False):
        if row.get(field) is None:
            there = ", ".join(map(str, row))
            near = difflib.get_close_matches(field, list(map(str, row)), n=1)
            what = "is empty" if field in row else "is not there"
            raise WrongDocument(
                f"{where}, row {number}: field {field!r} {what}; its fields are {there}; set "
                f"{option}={near[0] if near and near[0] != field else '<one of these>'}"
            )
    if not isinstance(row[text], str):
        raise WrongDocument(
            f"{where}, row {number}: {text!r} must be a text, got a {type(row[text]).__name__}; "
            "set labelled.text_field=<the field with the text>"
        )
    return {
        "text": row[text],
        "label": _spelt(row[label], names.get(label), where, label),
        "spurious": _spelt(row[spurious], names.get(spurious), where, spurious),
        "split": None if row.get(split) is None else str(row[split]),
    }


def _spelt(value: Any, names: list[str] | None, where: str, field: str) -> str:
    """Return a value by its name, where values are numbers."""
    if names is None or isinstance(value, str):
        return str(value)
    if not 0 <= int(value) < len(names):
        raise WrongDocument(
            f"{where}: {field}={value} has no name: labelled.names.{field} has {len(names)}; set "
            f"labelled.names.{field}=[<a name for 0>,<for 1>,...]"
        )
    return names[int(value)]
