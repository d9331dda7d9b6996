"""Attribution and ablation of `ssae shift`, beside the published notebook's way of doing them.

    python -m ssae.bench shift
    python -m ssae.bench shift --d-sae 4096 --documents 32

The bundled model reads synthetic biographies; SAEs sit at layers 0 to 3 and the probe reads at
layer 3: as in the notebook, at every layer up to the probe's.
The notebook's way (saprmarks/feature-circuits, bib_shift.ipynb), written out here in plain torch:
one document at a time (at HEAD; four for Pythia-70M); for each SAE and each of 10 steps a dense
decode of all latents, a pass through the model from its input, and gradients of all latents; an
ablated pass encodes and decodes densely with every SAE, also those that lose nothing. Ours:
documents of like length, all steps one batch, only the blocks behind the SAE, gradients of x and a
sampled product on the active latents, nothing but that product where the probe reads; only SAEs
that lose a latent run. Both are timed in turn; medians and their ratio, and how far the results
are apart.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ssae.activation.capture import capture_text
from ssae.activation.rows import Batch, Rows
from ssae.artifact.store import build
from ssae.bench.contenders import compose
from ssae.bench.ours import make
from ssae.labelled.synthetic import SyntheticBios
from ssae.language_model.frozen import LanguageModel
from ssae.probe.attribution import integrated_gradients
from ssae.probe.dictionary import zero_latents
from ssae.probe.linear import Linear
from ssae.probe.represent import Site, represent
from ssae.tokenise import tokenise

LAYERS, PROBED = (0, 1, 2, 3), "gpt_neox.layers.3"
BATCH, NUM_STEPS = 1, 10
"""Of the notebook."""
BATCH_TOKENS = 8192
"""Of ours, the steps together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, default, what in (
        ("--d-sae", 16384, "number of latents"),
        ("--k", 32, "active latents per token"),
        ("--documents", 16, "documents"),
        ("--rounds", 3, "measurements of each"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{what}; default {default}")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    for name in ("d_sae", "k", "documents", "rounds"):
        if getattr(arguments, name) < 1:
            option = f"--{name.replace('_', '-')}"
            sys.exit(f"{option} must be at least 1, got {getattr(arguments, name)}")
    found = measure(arguments.d_sae, arguments.k, arguments.documents, arguments.rounds)
    title = "{documents} documents, 4 SAEs of d_sae {d_sae}, k {k}".format(**vars(arguments))
    drawn = Table(title=title, title_justify="left")
    for name in ("", "notebook's way", "ours", "times faster"):
        drawn.add_column(name, justify="right" if name else "left", no_wrap=True)
    for what in ("effects", "ablated pass"):
        slow, fast = (found[what, who] / arguments.documents for who in ("theirs", "ours"))
        drawn.add_row(f"{what}, ms a document", f"{slow:.3g}", f"{fast:.3g}", f"{slow / fast:.1f}")
    drawn.caption = (
        f"effects differ by {found['effects', 'difference']:.1e}, representations by "
        f"{found['ablated pass', 'difference']:.1e} of the largest"
    )
    Console(width=None if sys.stdout.isatty() else 100).print(drawn)


def measure(d_sae: int, k: int, documents: int, rounds: int) -> dict[tuple[str, str], float]:
    """Return medians in milliseconds of both ways, and how far their results are apart."""
    with tempfile.TemporaryDirectory() as folder:
        lm, rows, sign = _documents(Path(folder), documents)
        everything = np.arange(documents)
        sites = _sites(lm, rows, d_sae, k)
        generator = torch.Generator().manual_seed(0)
        d_in = sites[0].sae.d_in
        probe = Linear(torch.randn(d_in, generator=generator, dtype=torch.float64), 0.0)
        lost = np.arange(0, d_sae, max(1, d_sae // 50))  # of one SAE; the others lose nothing
        edits = {sites[1].hookpoint: zero_latents(sites[1], lost)}
        ways: dict[tuple[str, str], Callable[[], Any]] = {
            ("effects", "theirs"): lambda: notebook_effects(lm, rows, sign, probe, sites),
            ("effects", "ours"): lambda: integrated_gradients(
                lm, rows, everything, sign, PROBED, probe, sites, NUM_STEPS, BATCH_TOKENS
            ),
            ("ablated pass", "theirs"): lambda: notebook_ablated(lm, rows, sites, lost),
            ("ablated pass", "ours"): lambda: represent(lm, rows, PROBED, BATCH_TOKENS, edits),
        }
        taken: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
        results: dict[tuple[str, str], Any] = {}
        for index in range(-1, rounds):  # one to warm up
            for way, work in ways.items():
                start = time.perf_counter()
                results[way] = work()
                if index >= 0:
                    taken[way].append(1e3 * (time.perf_counter() - start))
    found = {way: statistics.median(own) for way, own in taken.items()}
    for what in ("effects", "ablated pass"):
        theirs, ours = (np.concatenate([np.ravel(part) for part in results[what, who]])
                        for who in ("theirs", "ours"))  # fmt: skip
        found[what, "difference"] = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    return found


def _documents(folder: Path, num: int) -> tuple[LanguageModel, Rows, np.ndarray]:
    study = compose(folder, ["packing=documents"])
    bios = SyntheticBios(
        label="profession", spurious="gender", num_documents=max(4, num), correlation=0.9,
        purity=0.9, cues=0.5, seed=0,
    ).load()  # fmt: skip

    def write(place: Path) -> dict[str, Any]:
        texts = datasets.Dataset.from_dict({"text": bios.texts[:num]})
        texts.save_to_disk(place / "documents")
        return {}

    documents = build(study.artifacts, "labelled", {"num": num}, write)
    sign = 2 * bios.label[:num] - 1
    return study.language_model, Rows(tokenise(study, documents)), sign


def _sites(lm: LanguageModel, rows: Rows, d_sae: int, k: int) -> list[Site]:
    hookpoints = [f"gpt_neox.layers.{layer}" for layer in LAYERS]
    x = capture_text(lm, rows.batch(np.arange(min(8, rows.num_rows))), hookpoints)
    torch.manual_seed(0)
    return [Site(at, make("topk", x[at].float(), d_sae, k).eval()) for at in hookpoints]


def _one_by_one(rows: Rows) -> list[Batch]:
    order = np.arange(rows.num_rows)
    return [rows.batch(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def notebook_effects(
    lm: LanguageModel, rows: Rows, sign: np.ndarray, probe: Linear, sites: list[Site]
) -> list[np.ndarray]:
    """Return integrated gradients as the notebook computes them: dense, step by step."""
    totals = [torch.zeros(site.sae.d_sae) for site in sites]
    for batch in _one_by_one(rows):
        inside = (batch.document_ids >= 0).float()
        own = torch.from_numpy(-sign[batch.document_ids[:, 0].numpy()]).float()
        weight = probe.weight.float()
        for total, (at, sae) in zip(totals, sites, strict=True):
            with torch.no_grad():
                x = lm.capture(batch.input_ids, at, batch.attention_mask)
                f = sae.encode(x) * batch.text[:, :, None]
                error = x - sae.decode(f)
            gradients = torch.zeros_like(f)
            for step in range(NUM_STEPS):
                point = ((1 - step / NUM_STEPS) * f).requires_grad_()
                spliced = {at: lambda _, p=point, s=sae, e=error: s.decode(p) + e}
                last = lm.capture_spliced(batch.input_ids, PROBED, spliced, batch.attention_mask)
                means = torch.einsum("bld,bl->bd", last, inside) / inside.sum(1, keepdim=True)
                (own * (means @ weight)).sum().backward()
                assert point.grad is not None
                gradients += point.grad
            total += (gradients / NUM_STEPS * -f).sum((0, 1))
    return [(total / rows.num_documents).numpy() for total in totals]


@torch.no_grad()
def notebook_ablated(lm: LanguageModel, rows: Rows, sites: list[Site], lost: np.ndarray) -> Tensor:
    """Return pooled activations as the notebook computes them: every SAE runs, densely."""
    parts = []
    for batch in _one_by_one(rows):
        edits = {}
        for place, (at, sae) in enumerate(sites):

            def edit(x: Tensor, sae: Any = sae, place: int = place, batch: Batch = batch) -> Tensor:
                f = sae.encode(x)
                error = x - sae.decode(f)
                if place == 1:
                    f[:, :, lost] = 0
                return torch.where(batch.text[:, :, None], sae.decode(f) + error, x)

            edits[at] = edit
        last = lm.capture_spliced(batch.input_ids, PROBED, edits, batch.attention_mask)
        inside = (batch.document_ids >= 0).float()
        parts.append(torch.einsum("bld,bl->bd", last, inside) / inside.sum(1, keepdim=True))
    return torch.cat(parts)
