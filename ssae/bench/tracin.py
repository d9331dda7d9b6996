"""Cost of scoring by TracIn (ssae/tracin.py), beside a plain forward pass of the same SAE.

    python -m ssae.bench tracin
    python -m ssae.bench tracin --d-in 192 --d-sae 4096 --k 16

For every architecture: `sae(x)` without gradients, and the forward-mode pass that gives the
derivative of every token's loss along the gradient of the seeds. The two are measured in turn, so
that whatever else the machine does hits both; the table shows medians and their ratio. The gradient
itself, needed once per checkpoint, is timed once, over as many tokens.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssae.bench.ours import make
from ssae.sae.base import SparseAutoencoder
from ssae.sae.batchtopk import BatchTopKSAE
from ssae.sae.jvp import jvp
from ssae.sae.screen import kth_largest
from ssae.tracin import seed_gradients

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, default, what in (
        ("--d-in", 512, "width of the activations"),
        ("--d-sae", 16384, "number of latents"),
        ("--k", 32, "mean number of active latents per token"),
        ("--tokens", 8192, "tokens of a pass"),
        ("--rounds", 5, "measurements of each pass"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what}; default {default}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for name in ("d_in", "d_sae", "k", "tokens", "rounds"):
        if getattr(arguments, name) < 1:
            option = f"--{name.replace('_', '-')}"
            sys.exit(f"{option} must be at least 1, got {getattr(arguments, name)}")
    if arguments.k > arguments.d_sae:
        sys.exit(f"--k must be at most --d-sae {arguments.d_sae}, got {arguments.k}")
    torch.manual_seed(0)
    x = torch.randn(arguments.tokens, arguments.d_in, device=arguments.device)
    title = "d_in {d_in}, d_sae {d_sae}, k {k}, {tokens} tokens".format(**vars(arguments))
    drawn = Table(title=title, title_justify="left")
    for name in ("architecture", "l0", "forward ms", "jvp ms", "jvp / forward", "gradient ms"):
        drawn.add_column(name, justify="left" if name == "architecture" else "right", no_wrap=True)
    for architecture in ARCHITECTURES:
        row = measure(architecture, x, arguments.d_sae, arguments.k, arguments.rounds)
        drawn.add_row(
            architecture, f"{row['l0']:.1f}", f"{row['forward']:.3g}", f"{row['jvp']:.3g}",
            f"{row['jvp'] / row['forward']:.2f}", f"{row['gradient']:.3g}",
        )  # fmt: skip
    drawn.caption = "scoring may cost 2.5 forward passes of the SAE"
    Console(width=None if sys.stdout.isatty() else 100).print(drawn)


def measure(architecture: str, x: Tensor, d_sae: int, k: int, rounds: int) -> dict[str, float]:
    """Return l0 on x, and the milliseconds of a forward pass, of a jvp and of the gradient."""
    sae = scoring(architecture, x, d_sae, k)
    share = torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
    gradient: list[dict[str, Tensor]] = []
    once = _ms(lambda: gradient.extend(seed_gradients([sae], [(x, share)])), x)
    passes: dict[str, Callable[[], Any]] = {
        "forward": torch.no_grad()(lambda: sae(x)),
        "jvp": lambda: jvp(sae, x, gradient[0]),
    }
    ms: dict[str, list[float]] = {name: [] for name in passes}
    for index in range(-1, rounds):  # one to warm up
        for name, each in passes.items():
            taken = _ms(each, x)
            if index >= 0:
                ms[name].append(taken)
    with torch.no_grad():
        l0 = float(sae(x).latents.num_active().float().mean())
    return {name: statistics.median(own) for name, own in ms.items()} | {"l0": l0, "gradient": once}


def scoring(architecture: str, x: Tensor, d_sae: int, k: int) -> SparseAutoencoder:
    """Return an SAE in eval mode with about k active latents on x."""
    sae = make(architecture, x, d_sae, k).eval()
    if isinstance(sae, BatchTopKSAE):
        sample = x[:256]
        with torch.no_grad():
            sae.threshold.copy_(kth_largest(sae.pre_acts(sample), k * len(sample)))
    return sae


def _ms(work: Callable[[], Any], x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if x.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)
