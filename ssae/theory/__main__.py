"""`python -m ssae.theory [folder]`: trains L1 SAEs of toys, and writes what theory says of them."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from ssae.process.progress import progress_bar
from ssae.process.quiet import quiet_libraries
from ssae.report.theory import write_theory_page
from ssae.theory.demonstration import NUM_STEPS, TOTAL, demonstrate


def main(words: list[str] | None = None) -> None:
    """Write theory.html."""
    parser = argparse.ArgumentParser(prog="python -m ssae.theory", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("theory"))
    parser.add_argument("--seed", type=_least(0), default=0, help="of toys and SAEs; default 0")
    help_text = f"that each SAE trains; default {NUM_STEPS}"
    parser.add_argument("--steps", type=_least(1), default=NUM_STEPS, help=help_text)
    arguments = parser.parse_args(words)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    torch.set_num_threads(1)  # sums of one order on every machine; SAEs this small gain nothing
    with progress_bar("training SAEs", TOTAL) as bar:
        [task] = bar.tasks
        found = demonstrate(
            arguments.seed, lambda: bar.update(task.id, advance=1), num_steps=arguments.steps
        )
    print(write_theory_page(arguments.folder, found))  # noqa: T201


def _least(low: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < low:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {low}, got {word!r}; leave it out for the "
                "default"
            )
        return int(word)

    return read


if __name__ == "__main__":
    main()
