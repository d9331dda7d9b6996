"""`python -m ssae.bench step`, `e2e`, `data`, `index`, ...: ssae here, and installed peers."""

import argparse
import logging
import warnings

from ssae.process.allocator import tune_allocator

tune_allocator()  # before the import that starts torch

from ssae.bench import data, e2e, index, measures, shift, step, theory, tracin  # noqa: E402

BENCHMARKS = {
    "step": (step, "one training step"),
    "e2e": (e2e, "from text to a trained SAE"),
    "data": (data, "harvest, loader and memory"),
    "index": (index, "nearest neighbours among many documents"),
    "tracin": (tracin, "scoring documents by TracIn"),
    "shift": (shift, "effects and ablations of latents"),
    "theory": (theory, "optimal codes and the large dictionary"),
    "measures": (measures, "what evaluation measures beside the SAE's forward pass"),
}


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m ssae.bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    verbatim = argparse.RawDescriptionHelpFormatter
    for name, (module, what) in BENCHMARKS.items():
        module.add_arguments(
            benchmarks.add_parser(
                name, help=what, description=module.__doc__, formatter_class=verbatim
            )
        )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    logging.disable(logging.WARNING)
    BENCHMARKS[arguments.benchmark][0].run(arguments)


if __name__ == "__main__":
    main()
