"""One seed of `ssae shift`: every method of the table, on every fold."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.labelled.base import LabelledTexts
from ssae.probe.attribution import exact_effects, integrated_gradients, linear_effects
from ssae.probe.dictionary import Dictionary, Key
from ssae.probe.erase import leace, mean_difference
from ssae.probe.folds import Fold, ambiguous, balanced, folds_of
from ssae.probe.linear import Linear
from ssae.study import Study


class Method(NamedTuple):
    """What is done to the probe's representation; a row of the table, or a point of a curve."""

    name: str
    arm: str | None = None
    width: float | None = None
    retrained: bool = False
    """Whether a new probe is trained on what is left, on the ambiguous set again."""
    most: int | None = None
    """At most so many latents are ablated: a point of a curve. First come those that are judged to
    carry the attribute, the largest effect first, then the other candidates by effect times
    |selectivity - 1/2|."""


class Evidence(NamedTuple):
    """What is known of the documents without any seed."""

    groups: LabelledTexts
    rows: Rows
    x: Tensor
    """(n, d) pooled activations."""
    others: Mapping[str, Tensor]
    """{method: (n, d)} of documents that were changed before the model read them, or within it."""
    exchanged: tuple[Tensor, Tensor] | None
    """Pooled activations of documents in both readings; see judge.py."""
    concepts: Tensor | None
    """(n, num_words) cosines with concept vectors."""


Judgement = Callable[[Dictionary, np.ndarray], np.ndarray]
"""Returns the latents of a dictionary to be ablated, given its candidates."""
FEW_EXAMPLES = 100
"""Documents that effects are the mean over where each costs passes through the model."""


@dataclasses.dataclass
class Outcome:
    """What one seed found.

    Args:
        correct: {method: (n,) bool}; False where a document was not tested.
        tested: (n,) bool, the documents of all test sets.
        num_ablated: {method: the number of latents, in each fold}.
        effects: {which SAEs: {candidate: its effect in each fold}}.
    """

    correct: dict[Method, np.ndarray]
    tested: np.ndarray
    num_ablated: dict[Method, list[int]]
    effects: dict[Key, dict[int, list[float]]]


def limits(num_candidates: int) -> list[int]:
    """Return the numbers of latents that curves are drawn at: 1, 2, 4, ..."""
    return [2**power for power in range(num_candidates.bit_length()) if 2**power <= num_candidates]


def run_seed(
    study: Study,
    evidence: Evidence,
    dictionaries: Sequence[Dictionary],
    judgement: Judgement,
    seed: int,
    advance: Callable[[], None],
) -> Outcome:
    """Return what every method does to the probes of one seed.

    Args:
        study: names the protocol's constants.
        evidence: of the documents.
        dictionaries: of this seed.
        judgement: which candidates are ablated.
        seed: of folds and probes.
        advance: is called after every fold.
    """
    shift = study.shift
    num = len(evidence.groups.texts)
    outcome = Outcome(
        defaultdict(lambda: np.zeros(num, bool)),
        np.zeros(num, bool),
        defaultdict(list),
        {dictionary.key: defaultdict(list) for dictionary in dictionaries},
    )
    for fold in folds_of(evidence.groups, shift.num_folds, seed, shift.min_documents):
        _FoldTrial(study, evidence, fold, seed, outcome).run(dictionaries, judgement)
        advance()
    return outcome


class _FoldTrial:
    """One fold: probes are trained on its train set, all methods tested on its test set."""

    def __init__(
        self, study: Study, evidence: Evidence, fold: Fold, seed: int, outcome: Outcome
    ) -> None:
        self.study, self.evidence, self.fold, self.outcome = study, evidence, fold, outcome
        groups = evidence.groups
        self.ambiguous = ambiguous(groups, fold.train, seed)
        self.balanced = balanced(groups, fold.train, seed)
        self.seed = seed
        outcome.tested[fold.test] = True
        # Of random latents; a fold is known by its first test document.
        self.generator = np.random.default_rng([seed, int(fold.test[0])])
        self.biased = self.fit(evidence.x, self.ambiguous)

    def run(self, dictionaries: Sequence[Dictionary], judgement: Judgement) -> None:
        """Test every method."""
        evidence, x = self.evidence, self.evidence.x
        self.test(Method("original"), self.biased, x)
        if evidence.concepts is not None:
            bottleneck = self.fit(evidence.concepts, self.ambiguous)
            self.test(Method("concept_bottleneck"), bottleneck, evidence.concepts)
        for name, changed in evidence.others.items():
            self.test_both(Method(name), changed)
        if evidence.exchanged is not None:
            self.test_both(Method("mean_difference"), mean_difference(x, *evidence.exchanged))
        attribute = evidence.groups.spurious[self.balanced]
        self.test_both(Method("leace"), leace(x, x[self.balanced], attribute))
        self.test(Method("oracle"), self.fit(x, self.balanced), x)
        for place, dictionary in enumerate(dictionaries):
            num_ablated = self.shift(dictionary, judgement)
            if place == 0:
                self.neurons(num_ablated)

    def fit(self, x: Tensor, rows: np.ndarray) -> Linear:
        """Return a probe trained on some documents."""
        label = self.evidence.groups.label[rows]
        return self.study.shift.probe.fit(x[rows], label, self.seed)

    def test(self, method: Method, probe: Linear, x: Tensor) -> None:
        """Note which test documents the probe is right about."""
        rows = self.fold.test
        right = probe.predict(x[rows]) == self.evidence.groups.label[rows]
        self.outcome.correct[method][rows] = right

    def test_both(self, method: Method, x: Tensor) -> None:
        """Test the biased probe on changed representations, and one trained on them."""
        self.test(method, self.biased, x)
        self.test(method._replace(retrained=True), self.fit(x, self.ambiguous), x)

    def shift(self, dictionary: Dictionary, judgement: Judgement) -> int:
        """Test SHIFT and its controls; return how many latents it ablates."""
        settings, key = self.study.shift, dictionary.key
        own = {"arm": key.arm, "width": key.width}
        sign = 2 * self.evidence.groups.label[self.ambiguous] - 1
        effects = self.effects(dictionary, self.ambiguous, sign)
        candidates = largest(effects, settings.num_candidates, settings.min_effect)
        for latent in candidates.tolist():
            self.outcome.effects[key][latent].append(float(effects[latent]))
        chosen = judgement(dictionary, candidates)
        chosen = chosen[np.argsort(-effects[chosen], kind="stable")]
        x = self.ablate(Method("shift", **own), dictionary, chosen, retrains=True)
        self.test(Method("shift", **own, retrained=True), self.fit(x, self.ambiguous), x)
        alive = np.flatnonzero(np.asarray(dictionary.latents[self.ambiguous].sum(0)).ravel() > 0)
        random = self.generator.permutation(np.setdiff1d(alive, chosen))
        self.ablate(Method("random", **own), dictionary, random[: len(chosen)])
        attribute = 2 * self.evidence.groups.spurious[self.balanced] - 1
        skyline = self.effects(dictionary, self.balanced, attribute)
        self.ablate(Method("feature_skyline", **own), dictionary, largest(skyline, len(chosen)))
        if dictionary.is_linear:  # elsewhere every point is a pass through the model
            rest = np.setdiff1d(candidates, chosen)
            telling = effects[rest] * np.abs(dictionary.selectivity[rest] - 0.5)
            ranked = np.concatenate([chosen, rest[np.argsort(-telling, kind="stable")]])
            for most in limits(settings.num_candidates):
                self.ablate(Method("shift", **own, most=most), dictionary, ranked[:most])
                self.ablate(Method("random", **own, most=most), dictionary, random[:most])
        return len(chosen)

    def ablate(
        self, method: Method, dictionary: Dictionary, latents: np.ndarray, retrains: bool = False
    ) -> Tensor:
        """Test the biased probe without some latents; return what is left of the representation.

        It is that of the test documents and, if a probe is to be trained on it, of the ambiguous
        set.
        """
        read = [self.fold.test, self.ambiguous] if retrains else [self.fold.test]
        tokens = self.study.harvest_batch_tokens
        evidence = self.evidence
        lm = self.study.language_model
        documents = np.concatenate(read)
        x = dictionary.ablate(lm, evidence.rows, evidence.x, latents, tokens, documents)
        self.test(method, self.biased, x)
        self.outcome.num_ablated[method].append(len(latents))
        return x

    def neurons(self, num: int) -> None:
        """Test the neuron skyline: coordinates by effect on balanced data, at their mean."""
        x, rows = self.evidence.x, self.balanced
        sign = torch.from_numpy(2.0 * self.evidence.groups.spurious[rows] - 1)
        effects = (sign[:, None] * x[rows].double()).mean(0) * self.biased.weight
        chosen = torch.from_numpy(largest(effects.numpy(), num))
        changed = x.clone()
        changed[:, chosen] = x[rows][:, chosen].mean(0)
        self.test(Method("neuron_skyline"), self.biased, changed)
        self.outcome.num_ablated[Method("neuron_skyline")].append(len(chosen))

    def effects(self, dictionary: Dictionary, rows: np.ndarray, sign: np.ndarray) -> np.ndarray:
        """Return the effect (num_latents,) of every latent on the biased probe's margin."""
        settings, evidence = self.study.shift, self.evidence
        most = settings.num_examples or (None if dictionary.is_linear else FEW_EXAMPLES)
        rows, sign = rows[:most], sign[:most]
        if dictionary.is_linear:  # one step is exact, and so is the closed form
            own = dictionary.latents[rows]
            return linear_effects(own, dictionary.W_dec, self.biased, sign).numpy()
        where = (
            self.study.language_model, evidence.rows, rows, sign, dictionary.hookpoint,
            self.biased, dictionary.sites,
        )  # fmt: skip
        tokens = self.study.harvest_batch_tokens
        if settings.attribution == "exact":
            return np.concatenate(exact_effects(*where, tokens))
        patching = settings.attribution == "attribution_patching"
        num_steps = 1 if patching else settings.attribution_steps
        return np.concatenate(integrated_gradients(*where, num_steps, tokens))


def largest(effects: np.ndarray, num: int, above: float = 0) -> np.ndarray:
    """Return the indices of the largest effects that are above a bound, the largest first."""
    order = np.argsort(-effects, kind="stable")[:num]
    return order[effects[order] > above]
