"""`python -m ssae.bench step`: how fast ssae is on this machine, beside the peers installed."""

import argparse
import logging
import warnings

from ssae.allocator import use_huge_pages

use_huge_pages()  # before the import that starts torch

from ssae.bench import step  # noqa: E402


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m ssae.bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    verbatim = argparse.RawDescriptionHelpFormatter
    step.add_arguments(
        benchmarks.add_parser(
            "step", help="one training step", description=step.__doc__, formatter_class=verbatim
        )
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    logging.disable(logging.WARNING)
    step.run(arguments)


if __name__ == "__main__":
    main()
