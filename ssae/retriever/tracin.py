"""TracIn as a reranker: the best documents of another retriever, by their effect on the seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np

from ssae.activation.rows import Rows
from ssae.artifact.store import Artifact
from ssae.pool.pool import Pool
from ssae.read_pool import read_corpus
from ssae.retrieve import retrieve
from ssae.retriever.base import NO_SEED, UNSEEN, Retriever, Scores
from ssae.settings import check_types
from ssae.tokenise import tokenise
from ssae.tracin import checkpoints_of, input_scale_of, score_documents
from ssae.train import train

if TYPE_CHECKING:
    from ssae.study import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracIn(Retriever):
    """score(document) = sum_c weight_c < grad l(document; theta_c), g_c >; see ssae/tracin.py.

    The first stage chooses `oversample` budgets of text, as `ssae retrieve` does; only these are
    scored, so that only these can be selected.

    Args:
        retriever: the first stage.
        oversample: at least 1.
        budget_tokens: of the selection that is reranked for.
        arm: of the study, whose snapshots are the checkpoints theta_c.
    """

    retriever: Retriever
    oversample: float
    budget_tokens: int
    arm: str

    @property
    def name(self) -> str:
        """That of the first stage, and its own."""
        return f"{self.retriever.name}_tracin"

    def __post_init__(self) -> None:
        check_types(self, "retriever.")
        if self.oversample < 1 or self.budget_tokens < 1:
            raise ValueError(
                "TracIn needs oversample >= 1 and budget_tokens >= 1, got "
                f"{self.oversample} and {self.budget_tokens}; set retriever.oversample=5"
            )

    def stages(self) -> list[Retriever]:
        """Return the first stage."""
        return [self.retriever]

    def prepare(self, study: "Study") -> dict[str, Artifact]:
        """Return the candidates, the SAE and the rows of text of candidates and seeds."""
        if self.arm not in study.arms or self in _waited_for(study, self.arm, set()):
            others = [name for name in study.arms if self not in _waited_for(study, name, set())]
            raise ValueError(
                f"TracIn needs an arm that does not wait for it, got arm={self.arm!r}; set "
                f"retriever.arm={next(iter(others), 'generalist')}"
            )
        trained = train(study, self.arm)
        candidates = retrieve(study, self.retriever, round(self.oversample * self.budget_tokens))
        return {
            "trained": trained,
            "candidates": candidates,
            "candidate_rows": tokenise(study, candidates),
            "seed_rows": tokenise(study, read_corpus(study), "seeds"),
        }

    def score(
        self, study: "Study", pool: Pool, seeds: Sequence[str], made: Mapping[str, Artifact]
    ) -> Scores:
        """Return the scores of the candidates; their seed is that of the first stage."""
        lm = study.language_model
        found = score_documents(
            lm,
            lm.resolve(study.hookpoint),
            checkpoints_of(made["trained"]),
            Rows(made["seed_rows"]),
            Rows(made["candidate_rows"]),
            study.harvest_batch_tokens,
            input_scale_of(made["trained"]),
        )
        documents = datasets.Dataset.load_from_disk(made["candidates"].path / "documents")
        numbers = np.asarray(documents["document"][:])
        values = np.full(len(pool), UNSEEN, np.float32)
        nearest = np.full(len(pool), NO_SEED, np.int32)
        values[numbers], nearest[numbers] = found, documents["query"][:]
        return Scores(values, nearest)


def _waited_for(study: "Study", arm: str | None, seen: set[str]) -> list[Retriever]:
    """Return the retrievers that an arm needs, and the arms that it starts from or they read."""
    if arm is None or arm in seen or arm not in study.arms:
        return []
    seen.add(arm)
    found = _inside(study.arms[arm].retriever)
    for other in [study.arms[arm].init_from, *(r.arm for r in found if isinstance(r, TracIn))]:
        found += _waited_for(study, other, seen)
    return found


def _inside(retriever: Retriever) -> list[Retriever]:
    """Return a retriever and all those it is made of."""
    return [retriever, *(inner for stage in retriever.stages() for inner in _inside(stage))]
