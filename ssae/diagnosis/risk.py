"""The weights that an arm's own objective gives to tokens: an optimum of it is one of those.

A tilted arm minimises sum_i w_i losses_i with w = softmax(tilt losses), so what has to vanish at
its optimum is the residual's mean under w, not the plain mean (theory/violations.py takes weights).
The weights are the objective's own derivatives, whatever it is, in batches of the test text: its
tokens come in order, those of training were shuffled.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssae.activation.reader import Activations
from ssae.activation.rows import Rows
from ssae.activation.shards import Tokens
from ssae.harvest import harvest_for
from ssae.mix import documents_for
from ssae.objective.base import Losses, Memory, Objective
from ssae.objective.erm import ERM
from ssae.study import Study
from ssae.theory.coded import Coded
from ssae.tokenise import tokenise


class Risk(NamedTuple):
    """What an arm minimised."""

    objective: Objective
    memory: Memory
    variance: float
    """Of the activations it learnt from, the unit of its losses."""

    def weights(self, batch: Coded, tokens: Tokens, lam: float) -> Tensor:
        """Return the weights (n,) of tokens with their codes; their mean is about 1.

        Args:
            batch: n tokens.
            tokens: the same, for objectives over groups.
            lam: price of a unit of z.
        """
        errors = batch.residual.square().sum(1) / self.variance
        penalties = 2 * batch.objective(lam) / self.variance - errors
        with torch.enable_grad():
            errors.requires_grad_()
            losses = Losses(errors, penalties, tokens, variance=self.variance)
            loss, _ = self.objective(losses, self.memory)
            [gradient] = torch.autograd.grad(loss, errors)
        return (len(errors) * gradient).clamp_min(0)


def risk_of(study: Study, arm: str) -> Risk | None:
    """Return what an arm minimised; None if that is the plain mean of its losses."""
    objective = study.arms[arm].objective
    if type(objective) is ERM:
        return None
    memory = objective.memory(Rows(tokenise(study, documents_for(study, arm))))
    return Risk(objective, memory, Activations(harvest_for(study, arm)).variance)
