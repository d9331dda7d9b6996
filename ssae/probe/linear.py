"""Linear probes: a margin for each document, positive for class 1."""

import dataclasses
import functools
import logging
import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from ssae.settings import check_least, check_types

log = logging.getLogger(__name__)

FEW_STEPS = 50


class Linear(NamedTuple):
    """margin = x . weight + bias."""

    weight: Tensor
    """(d,) float64."""
    bias: float

    def margins(self, x: Tensor) -> Tensor:
        """Return the margins (n,) of representations (n, d)."""
        return x.double() @ self.weight + self.bias

    def predict(self, x: Tensor) -> np.ndarray:
        """Return the classes (n,), 0 or 1."""
        return (self.margins(x) > 0).long().numpy()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """How a probe is trained; a variant overrides `fit`."""

    def fit(self, x: Tensor, y: np.ndarray, seed: int) -> Linear:
        """Return the probe of representations (n, d) with classes (n,) of 0 and 1.

        Args:
            x: in the order of the data.
            y: 0 or 1.
            seed: of the order of documents and of initial weights.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Probe):
    """Logistic regression with an L2 penalty, on standardised coordinates (scikit-learn).

        min_w,b  1/2 ||w||^2 + C sum_i log(1 + exp(-+ (x_i . w + b))),  x_i standardised

    Args:
        C: the inverse of the penalty.
    """

    C: float

    def __post_init__(self) -> None:
        check_types(self, "shift.probe.")
        if not self.C > 0:
            raise ValueError(f"shift.probe.C must be positive, got {self.C}; set shift.probe.C=1")

    def fit(self, x: Tensor, y: np.ndarray, seed: int) -> Linear:
        """Return the one minimum; the seed plays no part."""
        x = x.double()
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)  # a constant coordinate tells nothing
        model = LogisticRegression(C=self.C, max_iter=2000, tol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(((x - mean) / scale).numpy(), y)
        weight = torch.from_numpy(np.ravel(model.coef_)) / scale
        return Linear(weight, float(np.ravel(model.intercept_)[0] - mean @ weight))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientSteps(Probe):
    """The published probe of SHIFT: nn.Linear, one epoch of AdamW on the logistic loss.

    (saprmarks/feature-circuits, bib_shift.ipynb: lr 1e-2, weight decay 0.01, batches of 128 for
    Pythia-70M, of 32 for Gemma-2-2B.)

    Args:
        lr: learning rate.
        batch_size: documents a step.
        num_epochs: passes over the documents, always in the same order.
        weight_decay: of AdamW.
    """

    lr: float
    batch_size: int
    num_epochs: int
    weight_decay: float

    def __post_init__(self) -> None:
        check_types(self, "shift.probe.")
        check_least(self, {"batch_size": (1, 128), "num_epochs": (1, 1)}, "shift.probe.")
        if not self.lr > 0:
            raise ValueError(
                f"shift.probe.lr must be positive, got {self.lr}; set shift.probe.lr=1e-2"
            )

    def fit(self, x: Tensor, y: np.ndarray, seed: int) -> Linear:
        """Return the weights after the last step."""
        num_steps = self.num_epochs * -(-len(x) // self.batch_size)
        if num_steps < FEW_STEPS:
            _warn(num_steps)
        x, target = x.float(), torch.from_numpy(y).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = nn.Linear(x.shape[1], 1)
        optimizer = torch.optim.AdamW(
            layer.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        for _ in range(self.num_epochs):
            for start in range(0, len(x), self.batch_size):
                rows = slice(start, start + self.batch_size)
                loss = nn.functional.binary_cross_entropy_with_logits(
                    layer(x[rows])[:, 0], target[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        weight, bias = layer.weight.detach()[0], layer.bias.detach()[0]
        return Linear(weight.double(), float(bias))


@functools.cache  # once for each number, of many folds
def _warn(num_steps: int) -> None:
    log.warning(
        "the published probe gets only %d steps on these documents, and may learn little; set "
        "shift/probe=logistic or shift.probe.num_epochs=20",
        num_steps,
    )
