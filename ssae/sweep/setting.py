"""Settings: the jobs of a sweep that differ in their seed only, and their means over it."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ssae.sweep.jobs import Job, Key, common_words


class Setting(NamedTuple):
    """The jobs that differ in their seed only."""

    name: str
    jobs: list[Job]

    def mean(self, key: Key, arm: str | None = None) -> tuple[float | None, float | None]:
        """Return a metric's mean over the seeds and half of its 95 % interval (Student's t).

        Args:
            key: of the metric.
            arm: whose, that of each job if not given.
        """
        values = [job.value(key, arm) for job in self.jobs]
        numbers = np.array([value for value in values if value is not None])
        if len(numbers) == 0:
            return None, None
        if len(numbers) == 1:
            return float(numbers[0]), None
        error = numbers.std(ddof=1) / np.sqrt(len(numbers))
        return float(numbers.mean()), float(stats.t.ppf(0.975, len(numbers) - 1) * error)


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """Return the jobs by setting, in the order of their first jobs."""
    settings: dict[tuple[tuple[str, str], ...], list[Job]] = {}
    for job in jobs:
        settings.setdefault(job.setting, []).append(job)
    common = {word.partition("=")[0] for word in common_words(jobs)}
    names = spell_settings(list(settings), taken=common)
    return [Setting(name, members) for name, members in zip(names, settings.values(), strict=True)]


def spell_settings(
    settings: Sequence[tuple[tuple[str, str], ...]], taken: Iterable[str] = ()
) -> list[str]:
    """Return settings as they are read, "tilt=5 lr=0.001"; in full where that says no difference.

    Args:
        settings: (key, value) pairs each.
        taken: keys that all of them have beside their own: no other is shortened to the same.

    >>> spell_settings([(("objective.tilt", "0"),), (("objective.tilt", "5"),)])
    ['tilt=0', 'tilt=5']
    """
    last = {key.rsplit(".", 1)[-1] for key in taken}
    short = [_shortened(setting, last) for setting in settings]
    chosen = [s if short.count(s) == 1 else full for s, full in zip(short, settings, strict=True)]
    return [" ".join(f"{key}={value}" for key, value in setting) for setting in chosen]


def _shortened(
    setting: tuple[tuple[str, str], ...], taken: Collection[str]
) -> tuple[tuple[str, str], ...]:
    """Return a setting with the last parts of its keys, where those are not the same or taken."""
    last = [key.rsplit(".", 1)[-1] for key, _ in setting]
    return tuple(
        (name if last.count(name) == 1 and name not in taken else key, _short(value))
        for name, (key, value) in zip(last, setting, strict=True)
    )


def _short(value: str) -> str:
    if len(value) <= 8:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
