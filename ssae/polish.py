"""ssae polish: a few alternating steps that lower the objective of a trained SAE, if they do.

sae.safetensors, sae.json   the best round's SAE, or the one polished where none helps (ssae.load)
metrics.json                objective, fvu, l0 on held-out tokens, before, after and the difference
manifest.json               kept, lam, num_rounds; rounds: what each of them gave

What is learnt from is the training text of `arm`. An SAE has learnt that text by heart, a little:
on it, no change looks good. So what decides are documents of a test split, or, for an SAE that was
trained elsewhere, documents of the same text that polishing leaves out (polish.held_out).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssae.activation.order import Permutation, mixed
from ssae.activation.reader import Activations
from ssae.activation.shards import Tokens
from ssae.artifact.store import Artifact, build
from ssae.harvest import harvest, harvest_for
from ssae.metric.formulas import Sums, fvu, l0
from ssae.metric.rows import row
from ssae.metric.sums import intervals, resample
from ssae.process.progress import progress_bar
from ssae.read_pool import read_corpus
from ssae.retriever.random import Random
from ssae.sae import files
from ssae.sae.base import SparseAutoencoder
from ssae.sae.formats.content import build as build_sae
from ssae.study import Study
from ssae.theory.coded import coded_by
from ssae.theory.penalty import penalty_of
from ssae.theory.polishing import PRICED, Score, check_polishable, polish_sae
from ssae.train import train

READ_TOKENS = 2**14
"""At a time."""
PRICE_TOKENS = 4096
"""On which lam is estimated, where training does not say it."""


def objective(sums: Sums) -> np.ndarray:
    """Mean of 1/2 error_i + lam sum_j z_ij: cost / tokens."""
    return sums["cost"] / sums["tokens"]


FORMULAS = (objective, fvu, l0)


def polish(study: Study) -> Artifact:
    """Return the polished SAE of `polish.sae`, or of the study's arm.

    Raises:
        ValueError: the SAE cannot be polished, is of another width, or there is no text.
    """
    settings = study.polish
    trained = train(study, study.arm) if settings.sae is None else None
    folder = trained.path if trained is not None else files.locate(str(settings.sae))
    content = files.read(folder)
    check_polishable(content.architecture, settings.lam or 0.0)
    harvested = harvest_for(study, study.arm)
    split = settings.held_out or _own_test(study)
    test = None
    if split != "documents":
        test = harvest(study, read_corpus(study), split, settings.held_out_tokens)
    inputs = {
        "sae": files.identity(folder),
        "input_scale": None if trained is None else trained.manifest.get("input_scale"),
        "activations": harvested,
        "held_out": split if test is None else test,
        "settings": settings,
        "num_bootstraps": study.num_bootstraps,
        "seed": study.seed,
        "format": 1,
    }

    def make(partial: Path) -> dict[str, Any]:
        sae = build_sae(content, folder)
        learnt, held = _tokens(study, Activations(harvested), test)
        _check_width(sae, learnt, folder)
        x, unseen = learnt.activations.float(), held.activations.float()
        lam = _lam(study, sae, x, inputs["input_scale"])
        with progress_bar("polishing", settings.rounds) as bar:
            [task] = bar.tasks
            found = polish_sae(
                sae, x, unseen, lam, rounds=settings.rounds, encoder_steps=settings.encoder_steps,
                batch_size=settings.batch_size_tokens, lr=settings.lr, seed=study.seed,
                progress=lambda done, what: bar.update(task.id, completed=done, rate=what),
            )  # fmt: skip
        facts = {"polished_from": str(folder), "rounds": found.num_rounds}
        if found.kept:
            files.save(found.sae, partial, content.metadata | facts)
        else:  # the weights that were there, to the bit
            unchanged = content._replace(metadata=content.metadata | facts)
            files.write(unchanged, partial, "ssae")
        name = study.arm if settings.sae is None else settings.sae
        metrics = _rows(study, name, held.document_ids, found.before, found.after)
        text = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
        (partial / "metrics.json").write_text(text, encoding="utf-8")
        return {
            "kept": found.kept,
            "lam": lam,
            "num_rounds": found.num_rounds,
            "num_tokens": len(x),
            "held_out": split,
            "held_out_tokens": len(unseen),
            "rounds": [one._asdict() for one in found.rounds],
        }

    return build(study.artifacts, "polish", inputs, make)


def _own_test(study: Study) -> str:
    """Return the test split that is like the arm's text."""
    if study.polish.sae is not None:  # has not seen any of it
        return "documents"
    is_random = isinstance(study.arms[study.arm].retriever, Random)
    return "general_test" if is_random else "subdomain_test"


def _lam(study: Study, sae: SparseAutoencoder, x: torch.Tensor, input_scale: float | None) -> float:
    if study.polish.lam is not None or sae.architecture not in PRICED:
        return study.polish.lam or 0.0
    return penalty_of(sae, coded_by(sae, x[:PRICE_TOKENS]), input_scale).lam


def _tokens(study: Study, activations: Activations, test: Artifact | None) -> tuple[Tokens, Tokens]:
    """Return tokens to learn from and held-out ones, of other documents."""
    settings = study.polish
    num_held = settings.held_out_tokens if test is None else 0
    learnt, held = split_tokens(activations, settings.num_tokens, num_held, study.seed)
    if test is not None:
        other = Activations(test)
        held = other.slice(0, len(other))
    for name, part in (("num_tokens", learnt), ("held_out_tokens", held)):
        if not len(part.activations):
            raise ValueError(
                f"polish needs documents to learn from and others to hold out, got no token for "
                f"polish.{name}; set budget_tokens to more text, or polish.held_out=general_test"
            )
    return learnt, held


def split_tokens(
    activations: Activations, num: int, num_held: int, seed: int
) -> tuple[Tokens, Tokens]:
    """Return `num` tokens and `num_held` of other documents; fewer where there are no more.

    Tokens are drawn one by one, not text by the page: neighbours are alike, and say less of a
    direction than their number promises. A document belongs to one side, whatever is read of it: a
    number drawn for it decides.
    """
    order = Permutation(len(activations), mixed(seed, 0))
    parts: tuple[list[Tokens], list[Tokens]] = [], []
    counts, wanted = [0, 0], (num, num_held)
    for start in range(0, len(activations), READ_TOKENS):
        if counts[0] >= num and counts[1] >= num_held:
            break
        positions = np.arange(start, min(start + READ_TOKENS, len(activations)))
        read = activations.rows(torch.from_numpy(order(positions)))
        drawn = np.random.default_rng(seed).random(int(read.document_ids.max()) + 1)
        is_held = torch.from_numpy(drawn < num_held / (num + num_held))[read.document_ids.long()]
        for side, where in enumerate((~is_held, is_held)):
            if counts[side] < wanted[side]:
                parts[side].append(Tokens(*(column[where] for column in read)))
                counts[side] += int(where.sum())
    nothing = activations.slice(0, 0)
    learnt, held = (
        Tokens(*(torch.cat(columns)[:most] for columns in zip(nothing, *side, strict=True)))
        for side, most in zip(parts, wanted, strict=True)
    )
    return learnt, held


def _rows(
    study: Study, name: str, document_ids: torch.Tensor, before: Score, after: Score
) -> list[dict[str, Any]]:
    """Return the rows of metrics.json; intervals are over resampled documents, paired."""
    _, documents = np.unique(document_ids.numpy(), return_inverse=True)
    drawn = []
    for found in (before, after):
        columns = found._asdict() | {"tokens": torch.ones_like(found.cost)}
        sums = {q: np.bincount(documents, v.numpy())[:, None] for q, v in columns.items()}
        drawn.append(resample(sums, study.num_bootstraps, study.seed))
    rows = []
    for formula in FORMULAS:
        first, last = (formula(sums)[:, 0] for sums in drawn)
        for moment, draws in (("before", first), ("after", last), ("difference", last - first)):
            rows.append(
                row(f"{formula.__name__}_{moment}", intervals(draws), name, "held_out", "all",
                    len(documents), formula)
            )  # fmt: skip
    return rows


def _check_width(sae: SparseAutoencoder, tokens: Tokens, folder: Path) -> None:
    width = tokens.activations.shape[1]
    if sae.d_in != width:
        raise ValueError(
            f"the SAE in {folder} reads activations of width {sae.d_in}, the study's hookpoint "
            f"gives {width}; set hookpoint=<the one it was trained on>"
        )
