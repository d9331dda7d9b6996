"""ssae polish: a few alternating steps that lower the objective of a trained SAE, if they do.

sae.safetensors, sae.json   the SAE after the best round, if it is kept, else as it was (ssae.load)
metrics.json                objective, fvu, l0 before, after the best round, and the difference
manifest.json               kept, why; lam, num_rounds; rounds: what each of them gave where it was
                            chosen; not_blind_on: the test split that has decided

What is learnt from is the training text of `arm`. An SAE has learnt that text by heart, a little:
on it, no change looks good. So what decides are documents of a test split, or, for an SAE that was
trained elsewhere, documents of the same text that polishing leaves out (polish.held_out). One half
of them chooses the best round, and it looks better there than it is. The other half, that of
metrics.json, has chosen nothing: only if it confirms the round, the round is kept.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens
from ssae.activation.split import halves, split_tokens
from ssae.artifact.store import Artifact, build
from ssae.harvest import harvest, harvest_for
from ssae.metric.formulas import Sums, fvu, l0
from ssae.metric.rows import row
from ssae.metric.sums import intervals, resample
from ssae.objective.erm import ERM
from ssae.process.progress import progress_bar
from ssae.read_pool import read_corpus
from ssae.retriever.random import Random
from ssae.sae import files
from ssae.sae.base import SparseAutoencoder
from ssae.sae.formats.content import build as build_sae
from ssae.study import Study
from ssae.theory.coded import coded_by
from ssae.theory.penalty import PRICED, penalty_of
from ssae.theory.polishing import (
    Polished,
    Score,
    check_polishable,
    holds_l0,
    polish_sae,
    score,
)
from ssae.train import train
from ssae.training.initialise import check_fits

log = logging.getLogger(__name__)

PRICE_TOKENS = 4096
"""On which lam is estimated, where training does not say it."""
LEAST_DOCUMENTS = 6
"""That confirm a round: of five, all improve by chance oftener than once in 40 times."""


def objective(sums: Sums) -> np.ndarray:
    """Mean of 1/2 error_i + lam sum_j z_ij: cost / tokens."""
    return sums["cost"] / sums["tokens"]


FORMULAS = (objective, fvu, l0)
MOMENTS = ("before", "after", "difference")

Numbers = dict[tuple[str, str], tuple[float, ...]]
"""{(formula, moment): (value, low, high)}, with the ends of the 95 % interval."""


def polish(study: Study) -> Artifact:
    """Return the polished SAE of `polish.sae`, or of the study's arm.

    Raises:
        ValueError: the SAE cannot be polished, or does not fit the activations, or there is too
            little text.
    """
    settings = study.polish
    given = settings.sae
    folder = train(study, study.arm).path if given is None else files.locate(given)
    name = study.arm if given is None else given
    content, input_scale = files.read(folder), files.trained_scale(folder)
    check_polishable(content.architecture, settings.lam or 0.0)
    risk = study.arms[study.arm].objective
    if given is None and type(risk) is not ERM:
        log.warning(
            "polishing lowers the plain mean over tokens; %s was trained for another risk, %r: "
            "evaluate what is kept on the tail, too",
            study.arm,
            risk,
        )
    harvested = harvest_for(study, study.arm)
    split = settings.held_out or _unseen(study, input_scale)
    test = None
    if split != "documents":
        test = harvest(study, read_corpus(study), split, settings.held_out_tokens)
    inputs = {
        "sae": files.identity(folder),
        "input_scale": input_scale,
        "activations": harvested,
        "held_out": split if test is None else test,
        "settings": settings,
        "num_bootstraps": study.num_bootstraps,
        "seed": study.seed,
        "format": 2,
    }

    def make(partial: Path) -> dict[str, Any]:
        sae, activations = build_sae(content, folder), Activations(harvested)
        check_fits(sae, folder, activations)
        learnt, choosing, reported = _tokens(study, activations, test)
        x, unseen = learnt.activations.float(), reported.activations.float()
        lam = _lam(study, sae, x, input_scale)
        with progress_bar("polishing", settings.rounds) as bar:
            [task] = bar.tasks
            found = polish_sae(
                sae, x, choosing.activations, lam, rounds=settings.rounds,
                encoder_steps=settings.encoder_steps, batch_size=settings.batch_size_tokens,
                lr=settings.lr, seed=study.seed,
                progress=lambda done, what: bar.update(task.id, completed=done, rate=what),
            )  # fmt: skip
        before, after = score(sae, unseen, lam), score(found.sae, unseen, lam)
        numbers = compared(before, after, reported.document_ids, study.num_bootstraps, study.seed)
        metrics = [
            row(f"{formula.__name__}_{moment}", numbers[formula.__name__, moment], name, "held_out",
                "all", len(unseen), formula)
            for formula in FORMULAS for moment in MOMENTS
        ]  # fmt: skip
        num_documents = len(reported.document_ids.unique())
        objection = objection_to(found, numbers, lam, num_documents)
        kept = objection is None
        num_rounds = found.num_rounds if kept else 0
        facts = {"polished_from": str(folder), "rounds": num_rounds}
        if kept:
            files.save(found.sae, partial, content.metadata | facts)
        else:  # the weights that were there, to the bit
            unchanged = content._replace(metadata=content.metadata | facts)
            files.write(unchanged, partial, "ssae")
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        (partial / "metrics.json").write_text(text, encoding="utf-8")
        return {
            "kept": kept,
            "why": objection or "the reported half confirms the round that the other half chose",
            "lam": lam,
            "input_scale": input_scale,  # for whoever polishes or diagnoses what is written here
            "num_rounds": num_rounds,
            "num_tokens": len(x),
            "held_out": split,
            "choosing_tokens": len(choosing.activations),
            "reported_tokens": len(unseen),
            "reported_documents": num_documents,
            "not_blind_on": split if kept and test is not None else None,
            "rounds": [one._asdict() for one in found.rounds],
        }

    return build(study.artifacts, "polish", inputs, make)


def objection_to(found: Polished, numbers: Numbers, lam: float, num_documents: int) -> str | None:
    """Return why the best round is not kept, or None: the reported half confirms it.

    Args:
        found: what the half that chooses made of the rounds.
        numbers: of the reported half.
        lam: price of a unit of z.
        num_documents: of the reported half.
    """
    if found.num_rounds == 0:
        return "no round lowered the objective on the half that chooses, at the l0 that the SAE has"
    value, low, high = numbers["objective", "difference"]
    other = f"round {found.num_rounds} of {len(found.rounds)} was chosen, but the other half"
    if num_documents < LEAST_DOCUMENTS:
        return f"{other} has {num_documents} documents; fewer than {LEAST_DOCUMENTS} prove nothing"
    if not (value < 0 and high < 0):
        return f"{other} does not confirm it: the objective changes by {low:.3g} .. {high:.3g}"
    before, after = (numbers["l0", moment][0] for moment in ("before", "after"))
    if not holds_l0(before, after, lam):
        return f"{other} does not confirm it: l0 rises from {before:.4g} to {after:.4g}"
    return None


def _unseen(study: Study, input_scale: float | None) -> str:
    """Return where to find text that the SAE has not seen; see `Polish.held_out`."""
    if study.polish.sae is not None and input_scale is None:
        return "documents"
    is_random = isinstance(study.arms[study.arm].retriever, Random)
    return "general_test" if is_random else "subdomain_test"


def _lam(study: Study, sae: SparseAutoencoder, x: torch.Tensor, input_scale: float | None) -> float:
    if study.polish.lam is not None or sae.architecture not in PRICED:
        return study.polish.lam or 0.0
    return penalty_of(sae, coded_by(sae, x[:PRICE_TOKENS]), input_scale).lam


def _tokens(
    study: Study, activations: Activations, test: Artifact | None
) -> tuple[Tokens, Tokens, Tokens]:
    """Return tokens to learn from, to choose by and to report on, of different documents."""
    settings = study.polish
    num_held = settings.held_out_tokens if test is None else 0
    learnt, held = split_tokens(activations, settings.num_tokens, num_held, study.seed)
    if test is not None:
        other = Activations(test)
        held = other.slice(0, len(other))
    choosing, reported = halves(held, study.seed)
    for name, part in (("num_tokens", learnt), ("held_out_tokens", choosing)):
        if not len(part.activations):
            raise ValueError(
                f"polish needs documents to learn from and two others to hold out, got too few for "
                f"polish.{name}; set budget_tokens to more text, or polish.held_out=general_test"
            )
    return learnt, choosing, reported


def compared(
    before: Score, after: Score, document_ids: torch.Tensor, num_bootstraps: int, seed: int
) -> Numbers:
    """Return what two SAEs give on the same tokens; over resampled documents, paired."""
    _, documents = np.unique(document_ids.numpy(), return_inverse=True)
    drawn = []
    for found in (before, after):
        columns = found._asdict() | {"tokens": torch.ones_like(found.cost)}
        sums = {q: np.bincount(documents, v.numpy())[:, None] for q, v in columns.items()}
        drawn.append(resample(sums, num_bootstraps, seed))
    numbers = {}
    for formula in FORMULAS:
        first, last = (formula(sums)[:, 0] for sums in drawn)
        for moment, draws in zip(MOMENTS, (first, last, last - first), strict=True):
            numbers[formula.__name__, moment] = tuple(map(float, intervals(draws)))
    return numbers
