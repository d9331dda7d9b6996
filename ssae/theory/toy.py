"""Activations whose concepts are known, to see what an L1 SAE makes of them.

    x_i = sum_c z_ic directions_c + noise_i

A variant says which concepts fire together. Activations are uniform in [1 - spread, 1 + spread]
where a concept fires; directions are orthonormal if they fit, else random of norm 1.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """Tokens."""

    x: Tensor
    """(n, d_in) float32."""
    z: Tensor
    """(n, num_concepts) activation of each concept; negative only for signed ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent:
    """Concepts that fire independently of each other.

    Args:
        num_concepts: how many.
        d_in: width of x.
        rate: share of tokens on which each fires.
        spread: of activations around 1.
        noise: standard deviation of the noise in each dimension.
        seed: of the directions.

    Raises:
        ValueError: a number is out of range.
    """

    num_concepts: int = 16
    d_in: int = 16
    rate: float = 0.15
    spread: float = 0.5
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_concepts < 1 or self.d_in < 1:
            raise ValueError(
                f"num_concepts and d_in must be positive, got {self.num_concepts}, {self.d_in}"
            )
        if not 0 < self.rate < 1 or not 0 <= self.spread < 1 or not 0 <= self.noise < math.inf:
            raise ValueError(
                "rate must lie in (0, 1), spread in [0, 1) and noise be at least 0, got "
                f"{self.rate}, {self.spread} and {self.noise}"
            )

    @functools.cached_property
    def directions(self) -> Tensor:
        """(num_concepts, d_in) of norm 1."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randn(self.num_concepts, self.d_in, generator=generator)
        if self.num_concepts <= self.d_in:
            return torch.linalg.qr(rows.T).Q.T.contiguous()
        return torch.nn.functional.normalize(rows)

    def fires(self, n: int, generator: torch.Generator) -> Tensor:
        """Return which concepts fire on n tokens, (n, num_concepts) bool."""
        return torch.rand(n, self.num_concepts, generator=generator) < self.rate

    def activations(self, n: int, generator: torch.Generator) -> Tensor:
        """Return z (n, num_concepts)."""
        fires = self.fires(n, generator)
        uniform = 2 * torch.rand(n, self.num_concepts, generator=generator) - 1
        return fires * (1 + self.spread * uniform)

    def draw(self, n: int, generator: torch.Generator | int) -> Draw:
        """Return n tokens; an int is the seed of a generator."""
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        z = self.activations(n, generator)
        noise = self.noise * torch.randn(n, self.d_in, generator=generator)
        return Draw(z @ self.directions + noise, z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchical(Independent):
    """The first concepts are parents; a child fires only where its parent does.

    Args:
        num_parents: concepts that have children; child c's parent is parents[c].
        children: of each parent; the concepts behind them are independent.
        child_rate: share of a parent's tokens on which one of its children fires, in (0, 1].
    """

    num_parents: int = 2
    children: int = 2
    child_rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        too_many = self.num_parents * (1 + self.children) > self.num_concepts
        if too_many or self.num_parents < 1 or self.children < 1:
            raise ValueError(
                f"num_parents ({self.num_parents}) with children ({self.children}) each, both at "
                f"least 1, must fit num_concepts ({self.num_concepts})"
            )
        if not 0 < self.child_rate <= 1:
            raise ValueError(f"child_rate must lie in (0, 1], got {self.child_rate}")

    @property
    def parents(self) -> dict[int, int]:
        """The parent of every child."""
        return {
            self.num_parents + p * self.children + c: p
            for p in range(self.num_parents)
            for c in range(self.children)
        }

    def fires(self, n: int, generator: torch.Generator) -> Tensor:
        """Return which concepts fire; at most one child of a parent does."""
        fires = super().fires(n, generator)
        chosen = torch.rand(n, self.num_parents, generator=generator) / self.child_rate
        for child, parent in self.parents.items():
            number = (child - self.num_parents) % self.children
            is_own = (chosen[:, parent] * self.children).floor() == number
            fires[:, child] = fires[:, parent] & is_own
        return fires


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped(Independent):
    """Concepts in groups of one size; within one they say something of each other.

    Args:
        group_size: of each; divides num_concepts.
    """

    group_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2 or self.num_concepts % self.group_size:
            raise ValueError(
                f"group_size must be at least 2 and divide {self.num_concepts}, got "
                f"{self.group_size}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MutuallyExclusive(Grouped):
    """Groups of concepts of which at most one fires on a token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate * self.group_size > 1:
            raise ValueError(f"rate {self.rate} x group_size {self.group_size} must not exceed 1")

    def fires(self, n: int, generator: torch.Generator) -> Tensor:
        """Return which concepts fire."""
        num_groups = self.num_concepts // self.group_size
        number = (torch.rand(n, num_groups, 1, generator=generator) / self.rate).floor()
        return (number == torch.arange(self.group_size)).view(n, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignedDense(Independent):
    """The first concepts are active on every token, with both signs: z ~ N(0, scale^2).

    Args:
        num_signed: how many.
        scale: standard deviation of their activation.
    """

    num_signed: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_signed <= self.num_concepts or not 0 < self.scale < math.inf:
            raise ValueError(
                f"num_signed must lie in 1 .. {self.num_concepts} and scale be positive, got "
                f"{self.num_signed}, {self.scale}"
            )

    def activations(self, n: int, generator: torch.Generator) -> Tensor:
        """Return z (n, num_concepts)."""
        z = super().activations(n, generator)
        z[:, : self.num_signed] = self.scale * torch.randn(n, self.num_signed, generator=generator)
        return z


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlated(Grouped):
    """Groups of concepts that tend to fire together, though none implies another.

    Args:
        correlation: of the normal variables whose largest values fire, in [0, 1).
    """

    correlation: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation must lie in [0, 1), got {self.correlation}")

    def fires(self, n: int, generator: torch.Generator) -> Tensor:
        """Return which concepts fire."""
        num_groups = self.num_concepts // self.group_size
        shared = torch.randn(n, num_groups, generator=generator)
        shared = shared.repeat_interleave(self.group_size, 1)
        own = torch.randn(n, self.num_concepts, generator=generator)
        normal = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * own
        return normal > torch.special.ndtri(torch.tensor(1 - self.rate, dtype=torch.float64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Independent):
    """A finite set of points: on every token one concept alone, with an activation of its own.

    `rate` plays no part: each of the num_concepts points is as frequent as the others.
    """

    @functools.cached_property
    def lengths(self) -> Tensor:
        """(num_concepts,) the activation of each, in [1 - spread, 1 + spread]."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return 1 + self.spread * (2 * torch.rand(self.num_concepts, generator=generator) - 1)

    def activations(self, n: int, generator: torch.Generator) -> Tensor:
        """Return z (n, num_concepts), one entry > 0 in each row."""
        chosen = torch.randint(self.num_concepts, (n,), generator=generator)
        return torch.nn.functional.one_hot(chosen, self.num_concepts) * self.lengths
