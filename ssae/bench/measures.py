"""Cost of the measures of evaluation (ssae/metric/measures.py), beside the SAE's forward pass.

    python -m ssae.bench measures
    python -m ssae.bench measures --d-in 192 --d-sae 2048 --k 16 --tokens 100000

For one SAE on random data: `sae(x)` on every batch, the updates of every metric, and what they
compute at the end, the resampling of documents included. Token types follow Zipf's law. Forward
pass and updates are measured in turn, so that whatever else the machine does hits both; the table
shows medians and their ratio to the forward pass.

The second table is the memory of the firings at a large d_sae: what is kept until the end, and the
peak while the measures are computed, in bytes for each firing.
"""

import argparse
import re
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssae.bench.tracin import scoring
from ssae.metric.frequency import frequency_of
from ssae.metric.measures import Measures, Split, Texts
from ssae.metric.sums import document_draws
from ssae.metric.tail import tail_types
from ssae.sae.base import SAEOutput
from ssae.sae.sparse import ActiveSet, SparseLatents

BATCH = 2048
DOCUMENT_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, default, what in (
        ("--d-in", 512, "width of the activations"),
        ("--d-sae", 16384, "number of latents"),
        ("--k", 32, "mean number of active latents per token"),
        ("--tokens", 32_768, "tokens of the set"),
        ("--vocab", 50_000, "token types"),
        ("--bootstraps", 1000, "resamples of documents"),
        ("--rounds", 3, "measurements of each"),
        ("--memory-tokens", 131_072, "tokens of the set whose memory is measured"),
        ("--memory-d-sae", 100_000, "latents of it"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what}; default {default}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for name, value in vars(arguments).items():
        if isinstance(value, int) and value < 1:
            sys.exit(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if arguments.k > min(arguments.d_sae, arguments.memory_d_sae):
        sys.exit(f"--k must be at most --d-sae and --memory-d-sae, got {arguments.k}")
    ms = cost(arguments)
    title = "d_in {d_in}, d_sae {d_sae}, k {k}, {tokens} tokens, {bootstraps} resamples"
    drawn = Table(title=title.format(**vars(arguments)), title_justify="left")
    for name in ("", "ms", "ms / forward"):
        drawn.add_column(name, justify="right" if name else "left", no_wrap=True)
    ms["together"] = ms["updates"] + ms["results"]
    for name, own in ms.items():
        drawn.add_row(name, f"{own:.4g}", f"{own / ms['forward']:.2f}")
    drawn.caption = "the measures may cost as much as the forward pass"
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(drawn)
    kept, peak, num = memory(arguments)
    title = f"{num:,} firings of {arguments.memory_d_sae:,} latents, bytes a firing"
    held = Table(title=title, title_justify="left")
    for name in ("kept", "more while computing"):
        held.add_column(name, justify="right")
    held.add_row(f"{kept:.1f}", f"{peak:.1f}")
    console.print(held)


class Batches(NamedTuple):
    """A split of random text, and its batches."""

    split: Split
    texts: list[Texts]


def cost(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds of the forward passes, the updates, and the results."""
    torch.manual_seed(0)
    device = arguments.device
    x = torch.randn(arguments.tokens, arguments.d_in, device=device)
    split, texts = draw(arguments.tokens, arguments.vocab, arguments.bootstraps, x.mean(0))
    sae = scoring("topk", x[:BATCH], arguments.d_sae, arguments.k)
    pieces = x.split(BATCH)
    ms: dict[str, list[float]] = {"forward": [], "updates": [], "results": []}
    for index in range(-1, arguments.rounds):  # one to warm up
        measures = Measures(sae.d_sae, split)
        took = dict.fromkeys(ms, 0.0)
        with torch.no_grad():
            for piece, text in zip(pieces, texts, strict=True):
                start = _now(device)
                out = sae(piece)
                between = _now(device)
                measures.update(piece, out, text, 2)
                took["forward"] += between - start
                took["updates"] += _now(device) - between
        start = _now(device)
        measures.result()
        took["results"] = _now(device) - start
        if index >= 0:
            for name, own in ms.items():
                own.append(1e3 * took[name])
    return {name: statistics.median(own) for name, own in ms.items()}


def memory(arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Return the bytes kept for each firing, those more at the peak, and the number of firings."""
    n, d_sae, k = arguments.memory_tokens, arguments.memory_d_sae, arguments.k
    split, texts = draw(n, arguments.vocab, arguments.bootstraps, torch.zeros(1))
    measures = Measures(d_sae, split)
    num = n * k
    for text in texts:
        size = len(text.ids)
        # Distinct within a token: even steps from a random start.
        steps = torch.arange(k) * (d_sae // k)
        indices = (torch.randint(d_sae, (size, 1)) + steps) % d_sae
        latents = SparseLatents(ActiveSet.of_rows(indices, d_sae), torch.rand(size * k) + 1e-3)
        x = torch.randn(size, 1)
        measures.update(x, SAEOutput(x / 2, latents, latents.values), text, 2)
    firings = measures.firings
    kept = sum(
        tensor.nbytes
        for state in firings.metric_state.values()
        if isinstance(state, list)
        for tensor in state
    )
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = _resident("VmRSS")
    measures.result()
    return kept / num, 1024 * (_resident("VmHWM") - before) / num, num


def draw(num_tokens: int, vocab: int, num_bootstraps: int, mean: Tensor) -> Batches:
    """Return random text, with types by Zipf's law in documents of 128 tokens."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, vocab + 1)
    ids = torch.from_numpy(generator.choice(vocab, num_tokens, p=share / share.sum()))
    documents = torch.arange(num_tokens) // DOCUMENT_TOKENS
    num_documents = int(documents[-1]) + 1
    frequency = frequency_of(torch.from_numpy((1e6 * share).astype(np.int64)))
    draws = document_draws(num_documents, num_bootstraps, seed=0)
    counts = torch.bincount(ids, minlength=vocab)
    tail = tail_types(frequency.ranks, counts, draws)
    texts = [
        Texts(own, at, torch.rand(3, len(own)), own, own, at, torch.arange(len(own)), own)
        for own, at in zip(ids.split(BATCH), documents.split(BATCH), strict=True)
    ]
    return Batches(Split(num_documents, mean.float(), frequency, tail), texts)


def _resident(name: str) -> int:
    """Return a size of this process in KiB."""
    [size] = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(size)


def _now(device: str) -> float:
    """Return the time in seconds, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
