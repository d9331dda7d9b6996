"""ssae report: the summary of finished runs and sweeps, drawn again; nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ssae.sweep.jobs import read_jobs
from ssae.sweep.summary import print_summary, write_summary

PAGE = "summary.html"


class Words(NamedTuple):
    """What stood on the command line."""

    folders: list[Path]
    page: Path
    logger: list[str]
    """Overrides of logger and logger.*."""


def report(words: Sequence[str], console: Console | None = None) -> Path:
    """Write the summary of some folders and return its page.

    Args:
        words: folders, out=FILE.html, logger=wandb, logger.<key>=<value>.
        console: where to print; the terminal if not given.

    Raises:
        ValueError: a word is neither, or a folder holds nothing that was measured.
    """
    folders, page, overrides = parse(words)
    for folder in folders:
        if not read_jobs(folder):
            raise ValueError(
                f"there is no finished run and no job of a sweep in {folder}: give a folder below "
                "runs/ that has a metrics.json or, in folders of its own, outcome.json"
            )
    jobs = read_jobs(*folders)
    title = ", ".join(folder.resolve().name for folder in folders)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_summary(page, jobs, title)
    print_summary(page, jobs, 0, console or Console())
    if overrides:
        from ssae.sweep.log import log_report  # which takes seconds to import

        log_report(overrides, title, jobs, page)
    return page


def parse(words: Sequence[str]) -> Words:
    """Return what the words of a command line ask for.

    A folder may have "=" in its name, as those of jobs do: what exists is a folder.

    Raises:
        ValueError: a word is neither a folder nor a key, or there is no folder.
    """
    folders, logger, page = [], [], None
    for word in words:
        key, equals, value = word.partition("=")
        if Path(word).is_dir():
            folders.append(Path(word))
        elif equals and key == "out":
            page = Path(value)
            if page.suffix != ".html":
                raise ValueError(
                    f"out must be the name of an .html file, got {value!r}; set out=summary.html"
                )
        elif equals and (key == "logger" or key.startswith("logger.")):
            logger.append(word)
        elif equals or word.startswith("-"):
            raise ValueError(
                f"ssae report has no {key!r}: it takes folders, out=FILE.html and logger=wandb"
            )
        else:
            raise ValueError(
                f"{word!r} is no folder; give one of a run or a sweep, such as runs/docstrings/mine"
            )
    if not folders:
        raise ValueError(
            "ssae report needs a folder of a run or a sweep, got none; "
            "for example: ssae report runs/docstrings/mine"
        )
    own = folders[0] if len(folders) == 1 else Path()
    return Words(folders, page or own / PAGE, logger)
