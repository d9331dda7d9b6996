"""Time of one whole training step, side by side with the peers that are installed.

    python -m ssae.bench step
    python -m ssae.bench step --shape 192,2048,16,1024 --only topk --json step.json

All steps of a shape are measured in turn, round after round in one process, so that whatever else
the machine does hits all of them; the table shows medians, and ratios to the floor: the encoder's
matrix product alone, x @ W_enc in float32. Peers run as their own trainers do, in float32 and in
their mixed precision. Install them with: pip install -e ".[peers]"
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ssae.bench import peers
from ssae.bench.agreement import selection_agreement
from ssae.bench.memory import peak_memory
from ssae.bench.ours import Step, make
from ssae.objective.term import TERM
from ssae.sae.scores import fast_dtype

SHAPES = ("512,16384,32,4096", "768,24576,64,4096")
FLOOR = "x @ W_enc alone, fp32"
RELU_L0 = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--shape", action="append", metavar="D_IN,D_SAE,K,TOKENS",
        help=f"may be repeated; default {' and '.join(SHAPES)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--only", help="steps whose name contains this, and the floor")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too; - is stdout")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    shapes, device = _check(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    width = None if sys.stdout.isatty() else 100  # a log has room for the whole table
    console = Console(stderr=arguments.json == "-", width=width)
    screens = fast_dtype(device) is not None
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "screens_in_bfloat16": screens, "shapes": [],
    }  # fmt: skip
    if screens:
        results["agreement"] = selection_agreement(device)
        console.print(
            "On activations of the bundled model {share:.4%} of {entries:,} entries chosen through "
            "bfloat16 are those of the exact top k.".format(**results["agreement"])
        )
    for shape in shapes:
        rows = measure(*shape, device, arguments)
        results["shapes"].append(dict(zip(("d_in", "d_sae", "k", "tokens"), shape, strict=True))
                                 | {"steps": rows})  # fmt: skip
        console.print(table(shape, rows))
    if arguments.json:
        out = json.dumps(results, indent=1)
        if arguments.json == "-":
            print(out)  # noqa: T201
        else:
            with open(arguments.json, "w", encoding="utf-8") as file:
                file.write(out)


def measure(
    d_in: int, d_sae: int, k: int, n: int, device: torch.device, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row per step: name, milliseconds, tokens per second, ratio to the floor."""
    torch.manual_seed(0)
    batches = [torch.randn(n, d_in, device=device) for _ in range(4)]
    steps: dict[str, Callable[[Tensor], Any]] = {}
    for name, build in builders(batches[0], d_sae, k).items():
        if name == FLOOR or not arguments.only or arguments.only in name:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # a peer greets; stdout is for --json
                    steps[name] = build()
            except ImportError as error:
                print(f"without {name}: {error}; pip install 'ssae[peers]'", file=sys.stderr)  # noqa: T201
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rounds = range(-2, arguments.rounds)  # two to warm up
    for index in track(
        rounds, f"{d_in} x {d_sae}", transient=True, disable=not sys.stderr.isatty()
    ):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step(batches[index % len(batches)])
            _wait(device)
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds[FLOOR])
    rows = []
    for name, step in steps.items():
        median = statistics.median(seconds[name])
        row = {
            "step": name, "ms": 1e3 * median, "ms_min": 1e3 * min(seconds[name]),
            "ms_max": 1e3 * max(seconds[name]), "tokens_per_second": n / median,
            "ratio_to_floor": median / floor,
        }  # fmt: skip
        if isinstance(step, Step):
            assert step.l0 is not None
            row["l0"] = float(step.l0.float().mean())
        rows.append(row)
    steps.clear()
    if not arguments.no_memory:
        build = builders(batches[0], d_sae, k)
        for row in rows:
            if row["step"].startswith("ssae"):
                extra = peak_memory(build[row["step"]](), batches[0])
                row["extra_memory"] = extra / 4 / (n * d_sae)
    return rows


def builders(x: Tensor, d_sae: int, k: int) -> dict[str, Callable[[], Callable[[Tensor], Any]]]:
    """Return what makes each step, by name."""
    d_in, device = x.shape[1], x.device
    weight = torch.randn(d_sae, d_in, device=device)
    fast = fast_dtype(device) is not None
    found: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
        FLOOR: lambda: lambda x: x @ weight.T,
        "ssae topk": lambda: Step(make("topk", x, d_sae, k)),
        "ssae topk, TERM": lambda: Step(make("topk", x, d_sae, k), TERM(tilt=5.0)),
        "ssae batchtopk": lambda: Step(make("batchtopk", x, d_sae, k)),
        "ssae jumprelu": lambda: Step(make("jumprelu", x, d_sae, k)),
        "ssae matryoshka": lambda: Step(make("matryoshka", x, d_sae, k)),
        "ssae relu": lambda: Step(make("relu", x, d_sae, RELU_L0)),
        "ssae gated": lambda: Step(make("gated", x, d_sae, RELU_L0)),
    }
    if fast:
        found["ssae topk, exact"] = lambda: Step(make("topk", x, d_sae, k), screening="exact")
    for mode in ("fp32", "bf16"):
        found[f"sparsify topk, {mode}"] = lambda mode=mode: peers.sparsify_topk(
            d_in, d_sae, k, mode, device
        )
        for kind in ("topk", "batchtopk", "jumprelu", "standard"):
            found[f"saelens {kind}, {mode}"] = lambda mode=mode, kind=kind: peers.saelens(
                kind, d_in, d_sae, k, mode, device
            )
    return found


def table(shape: tuple[int, ...], rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table for the terminal."""
    d_in, d_sae, k, n = shape
    drawn = Table(title=f"d_in {d_in}, d_sae {d_sae}, k {k}, {n} tokens", title_justify="left")
    reference = next((row["ms"] for row in rows if row["step"] == "ssae topk"), None)
    for name in ("step", "ms", "range", "tokens/s", "x floor", "x topk", "l0", "memory"):
        drawn.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(
            row["step"], _spell(row["ms"]), f"{_spell(row['ms_min'])}-{_spell(row['ms_max'])}",
            f"{row['tokens_per_second']:,.0f}", f"{row['ratio_to_floor']:.2f}",
            f"{row['ms'] / reference:.2f}" if reference else "",
            f"{row['l0']:.0f}" if "l0" in row else "",
            f"{row['extra_memory']:.2f}" if "extra_memory" in row else "",
        )  # fmt: skip
    drawn.caption = (
        "x floor, x topk: time over that of the floor, of ssae topk. memory: of tensors at the "
        "peak of a step beyond parameters, gradients and optimiser, in tokens x d_sae floats"
    )
    return drawn


def _check(arguments: argparse.Namespace) -> tuple[list[tuple[int, int, int, int]], torch.device]:
    """Return shapes and device, or leave with what is wrong, before anything is measured."""
    for name, value in (("--rounds", arguments.rounds), ("--threads", arguments.threads)):
        if value is not None and value < 1:
            sys.exit(f"{name} must be at least 1, got {value}")
    try:
        device = torch.device(arguments.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        sys.exit(f"--device {arguments.device} cannot be used: {line}; give cpu or cuda")
    if arguments.json not in (None, "-"):
        try:
            open(arguments.json, "a", encoding="utf-8").close()
        except OSError as error:
            sys.exit(f"--json: {error}")
    shapes = [_shape(text) for text in arguments.shape or SHAPES]
    names = builders(torch.empty(1, 1), 1, 1)
    if arguments.only and not any(arguments.only in name for name in names):
        sys.exit(f"--only {arguments.only} is in the name of no step: {', '.join(names)}")
    return shapes, device


def _shape(text: str) -> tuple[int, int, int, int]:
    try:
        d_in, d_sae, k, n = (int(part) for part in text.split(","))
    except ValueError:
        sys.exit(f"--shape must be four whole numbers D_IN,D_SAE,K,TOKENS, got {text!r}")
    if min(d_in, d_sae, k, n) < 1 or k > d_sae:
        sys.exit(f"--shape needs positive numbers and k <= d_sae, got {text!r}")
    return d_in, d_sae, k, n


def _spell(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
