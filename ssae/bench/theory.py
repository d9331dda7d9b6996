"""The solvers of ssae.theory: optimal codes beside scikit-learn's, and the large dictionary.

    python -m ssae.bench theory
    python -m ssae.bench theory --tokens 200 --d-sae 4096

Optimal codes: scikit-learn's positive Lasso (coordinate descent, one token after the other, with a
precomputed Gram matrix) against active sets of all tokens at once, on tokens of sparse concepts in
noise, and on the hard case: Gaussian tokens, of which a coherent dictionary (half as wide, so its
directions are near one another) makes codes of nearly d_in latents. Both are stopped at the same
violation of the KKT conditions, as near as scikit-learn's `tol` lets it; the table says what each
reached. The large dictionary: 2,000 tokens that may choose
among their own 2,000 directions, d_in 128, to a relative duality gap of 1e-4.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import Lasso
from torch import Tensor

from ssae.theory.coded import unit_directions
from ssae.theory.codes import kkt_violation, optimal_codes
from ssae.theory.convex import candidates_of, solve_large_dictionary

D_IN, LAM, NUM_CONCEPTS, ACTIVE = 128, 0.1, 256, 8
NOISE = 0.1
"""Norm of the noise of a token, beside concepts of activation 0.5 to 1.5."""
COHERENT_D_IN, COHERENT_LAM = 64, 0.5
POINTS = 2000
GAMMAS = (0.02, 0.1, 0.2)
TOLERANCE = 1e-8
SKLEARN_TOL = 1e-14
"""Of the duality gap relative to ||x||^2, which is of the order of the square of the violation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, default, what in (
        ("--tokens", 200, "tokens with optimal codes"),
        ("--d-sae", 2048, "number of latents"),
        ("--points", POINTS, "tokens, and candidates, of the large dictionary"),
        ("--rounds", 3, "measurements of each"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what}; default {default}")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for name in ("tokens", "d_sae", "points", "rounds"):
        if getattr(arguments, name) < 1:
            option = f"--{name.replace('_', '-')}"
            sys.exit(f"{option} must be at least 1, got {getattr(arguments, name)}")
    console = Console()
    n, d_sae = arguments.tokens, arguments.d_sae
    console.print(_codes(planted_tokens(n, 0), random_rows(d_sae, D_IN, 1), LAM, arguments.rounds))
    x = COHERENT_D_IN**0.5 * random_rows(n, COHERENT_D_IN, 2)
    D = random_rows(d_sae, COHERENT_D_IN, 3)
    console.print(_codes(x, D, COHERENT_LAM, arguments.rounds))
    console.print(_large_dictionaries(arguments.points))


def random_rows(n: int, d_in: int, seed: int) -> Tensor:
    """Return random directions (n, d_in) of norm 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    return unit_directions(torch.randn(n, d_in, generator=generator, dtype=torch.float64))[0]


def planted_tokens(n: int, seed: int) -> Tensor:
    """Return tokens (n, D_IN) of a few concepts each, in noise, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_CONCEPTS, D_IN)
    D = unit_directions(torch.randn(shape, generator=generator, dtype=torch.float64))[0]
    fires = torch.rand(n, NUM_CONCEPTS, generator=generator) < ACTIVE / NUM_CONCEPTS
    z = fires * (0.5 + torch.rand(n, NUM_CONCEPTS, generator=generator))
    noise = torch.randn(n, D_IN, generator=generator, dtype=torch.float64)
    return z.double() @ D + NOISE / math.sqrt(D_IN) * noise


def sklearn_codes(x: Tensor, D: Tensor, lam: float) -> Tensor:
    """Return optimal codes (n, d_sae) by scikit-learn, token by token."""
    features = np.asfortranarray(D.T.numpy())
    # Its objective divides the squared error by 2 d_in.
    lasso = Lasso(
        lam / D.shape[1], positive=True, fit_intercept=False, tol=SKLEARN_TOL, max_iter=1_000_000,
        precompute=cast(Any, (D @ D.T).numpy()),
    )  # fmt: skip
    return torch.from_numpy(np.stack([lasso.fit(features, row).coef_ for row in x.numpy()]))


def _codes(x: Tensor, D: Tensor, lam: float, rounds: int) -> Table:
    ways: dict[str, Callable[[], Tensor]] = {
        "scikit-learn": lambda: sklearn_codes(x, D, lam),
        "ssae.theory": lambda: optimal_codes(x, D, lam, tolerance=TOLERANCE).z,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    codes = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            codes[name] = way()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    table = Table(
        title=f"optimal codes of {len(x)} tokens, d_in {x.shape[1]}, d_sae {len(D)}",
        title_justify="left",
    )
    for name in ("", "ms a token", "times faster", "KKT violation"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, z in codes.items():
        worst = float(kkt_violation(x, z, D, lam).max())
        ratio = medians["scikit-learn"] / medians[name]
        table.add_row(name, f"{1000 * medians[name] / len(x):.3g}", f"{ratio:.2f}", f"{worst:.1e}")
    difference = float((codes["scikit-learn"] - codes["ssae.theory"]).abs().max())
    table.caption = f"largest difference of a code: {difference:.1e}"
    return table


def _large_dictionaries(num: int) -> Table:
    x = planted_tokens(num, 0)
    candidates = candidates_of(x)
    table = Table(title=f"{num:,} tokens among {num:,} directions", title_justify="left")
    for name in ("gamma", "seconds", "duality gap", "directions in use", "sweeps"):
        table.add_column(name, justify="right", no_wrap=True)
    for gamma in GAMMAS:
        start = time.perf_counter()
        found = solve_large_dictionary(x, candidates, LAM, gamma)
        seconds = time.perf_counter() - start
        table.add_row(
            f"{gamma}", f"{seconds:.1f}", f"{found.gap:.1e}", f"{found.num_used:,}",
            f"{found.num_sweeps}",
        )  # fmt: skip
    return table
