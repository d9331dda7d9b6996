"""From a ranking to a selection: down from the best until the budget is full, leaving out copies.

Only what is looked at is fetched, so that near duplicates cost what the selection costs, not what
the pool costs.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ssae.copies import Copies
from ssae.pool.pool import Pool
from ssae.process.progress import progress_bar
from ssae.retriever.base import NO_SEED, UNSEEN, Scores
from ssae.settings import check_types

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4.0
"""A first guess of how many documents a budget takes."""
OVER_SHARE = "num_over_seed_share"


class Chosen(NamedTuple):
    """A selected document."""

    document: int
    """Its number in the pool."""
    text: str
    num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the best-scored documents are taken.

    Exact repeats, seeds and test documents have left the pool before (pool/catalogue.py).

    Args:
        near_duplicates: a document is left out if it resembles one taken before, or overlaps with a
            seed or test document, by this much (copies.py); null: only exact copies are.
        seed_share: of the budget that documents closest to one seed may fill, so that a seed with
            much to say does not fill it alone; 1 sets no limit. A few seeds have more: at least two
            equal shares each.
    """

    near_duplicates: float | None
    seed_share: float

    def __post_init__(self) -> None:
        check_types(self, "selection.")
        number = isinstance(self.near_duplicates, int | float) and self.near_duplicates is not True
        if self.near_duplicates is not None and not (number and 0 < self.near_duplicates <= 1):
            raise ValueError(
                f"near_duplicates must be null or in (0, 1], got {self.near_duplicates}; "
                "set selection.near_duplicates=0.8"
            )
        if not 0 < self.seed_share <= 1:
            raise ValueError(
                f"seed_share must be in (0, 1], got {self.seed_share}; set selection.seed_share=1"
            )

    def take(
        self,
        pool: Pool,
        scores: Scores,
        held_out: Sequence[str],
        budget_tokens: int,
        count_tokens: Callable[[list[str]], list[int]],
    ) -> tuple[list[Chosen], dict[str, int]]:
        """Return the selection, best first, and how many documents were left out for what.

        The document that crosses the budget is still taken, so that a selection is never empty.

        Args:
            pool: the documents.
            scores: of all of them; those not looked at are never taken.
            held_out: texts of seeds and tests.
            budget_tokens: of text.
            count_tokens: returns the number of tokens of each text.
        """
        ranking = np.argsort(-scores.values, kind="stable")
        ranking = ranking[scores.values[ranking] > UNSEEN]
        copies = Copies(self.near_duplicates, held_out)
        num_seeds = len(np.unique(scores.seeds[scores.seeds != NO_SEED]))
        most_per_seed = max(self.seed_share, 2 / max(1, num_seeds)) * budget_tokens
        used: Counter[int] = Counter()
        chosen: list[Chosen] = []
        left_out: Counter[str] = Counter()
        total, held_up = 0, False
        with progress_bar("selecting", budget_tokens) as progress:
            [task] = progress.tasks
            while total < budget_tokens and len(ranking):
                size = _guess(pool, ranking, budget_tokens - total)
                batch, ranking = ranking[:size], ranking[size:]
                for document, text, num_tokens in _fetched(pool, batch, count_tokens):
                    seed = int(scores.seeds[document])
                    is_over = seed != NO_SEED and used[seed] >= most_per_seed
                    reason = OVER_SHARE if is_over else copies.reason(document, text)
                    if reason:
                        left_out[reason] += 1
                        continue
                    copies.take(document)
                    chosen.append(Chosen(document, text, num_tokens))
                    used[seed] += num_tokens
                    total += num_tokens
                    shown = f"{len(chosen):,} documents, {total:,} tokens"
                    progress.update(task.id, completed=min(total, budget_tokens), rate=shown)
                    if total >= budget_tokens:
                        break
                # Not even fetched, from here on.
                full = [s for s, n in used.items() if s != NO_SEED and n >= most_per_seed]
                is_full = np.isin(scores.seeds[ranking], full)
                held_up |= bool(is_full.any())
                ranking = ranking[~is_full]
        if total < budget_tokens:
            log.warning(
                "only %d tokens are selected for budget_tokens=%d: %s",
                total,
                budget_tokens,
                _shortage(scores, held_up or left_out[OVER_SHARE] > 0),
            )
        return chosen, dict(left_out)


def _shortage(scores: Scores, shares_are_full: bool) -> str:
    if shares_are_full:
        return "the seeds' shares are full; raise selection.seed_share"
    if (scores.values == UNSEEN).any():
        return (
            "these are all that the retriever looked at; raise retriever.candidates_per_seed, or "
            "retriever.oversample of a TracIn"
        )
    return "the pool holds no more"


def _guess(pool: Pool, ranking: np.ndarray, num_tokens: int) -> int:
    """Return how many documents of the ranking may hold so many tokens."""
    wanted = num_tokens * CHARACTERS_PER_TOKEN
    size = 256
    while size < len(ranking):
        characters = pool.column("num_characters")[ranking[:size]].sum()
        if characters >= wanted:
            break
        size *= 2
    return size


def _fetched(
    pool: Pool, documents: np.ndarray, count_tokens: Callable[[list[str]], list[int]]
) -> Iterator[Chosen]:
    texts = pool.fetch(documents)
    for start in range(0, len(texts), 256):
        some = texts[start : start + 256]
        for document, text, count in zip(
            documents[start : start + 256].tolist(), some, count_tokens(some), strict=True
        ):
            yield Chosen(document, text, count)
