"""`diagnose.html` and the terminal's table: what `ssae diagnose` found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from ssae.artifact.replace import write_text
from ssae.report import diagnose_figures
from ssae.report.contexts import visible
from ssae.report.diagnose_sentences import answers
from ssae.report.marks import styles
from ssae.report.page import page_environment
from ssae.report.table import SAES, SPLITS, Column, Metric, find, number, ordered, spell
from ssae.report.terminal import tables_by_split

COLUMNS = tuple(
    Column(name, split, title, 0)
    for split in SPLITS
    for name, title in (
        ("tangent_excess_median", "excess tangent"),
        ("tangent_excess_rarity_correlation", "with rarity"),
        ("tangent_excess_tail_difference", "tail latents"),
        ("cone_violated", "cone violated"),
        ("dense_antipodal_pairs", "antipodal pairs"),
        ("shrinkage_share", "shrinkage share"),
        ("fvu", "fvu"),
        ("l0", "l0"),
    )
)
SPLIT_WORDS = {"subdomain_test": "the subdomain's test split", "general_test": "the general one"}


def write_diagnose_report(
    folder: Path,
    *,
    name: str,
    summary: Mapping[str, str],
    metrics: Sequence[Metric],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    config: str,
) -> Path:
    """Write diagnose.html; return it.

    Args:
        folder: that exists.
        name: of the study.
        summary: what was looked at, name to text.
        metrics: the rows of metrics.json.
        tables: those of tables.json.
        config: the composed config.
    """
    names = saes_of(metrics)
    looks = styles(names)
    figures = [
        diagnose_figures.scale_of_objectives(tables["gaps"], looks),
        *(diagnose_figures.quantiles(tables["violations"], split, looks) for split in SPLITS),
        *(diagnose_figures.by_rarity(tables["rarity"], split, looks) for split in SPLITS),
        diagnose_figures.identity(tables["identity"], SPLITS[0], looks),
        diagnose_figures.spectra(tables["spectrum"], SPLITS[0], looks),
        *(diagnose_figures.split_trees(tree) for tree in tables["splits"]),
    ]
    environment = page_environment()
    environment.filters |= {"spell": spell, "tokens": spell_tokens, "percent": _percent}
    page = environment.get_template("diagnose.html.jinja").render(
        title=f"{name}: is the dictionary optimal?",
        summary=summary,
        answers=answers(metrics, tables),
        columns=COLUMNS,
        splits=SPLIT_WORDS,
        saes=names,
        cells={name: [find(metrics, c.name, split=c.split, sae=name) for c in COLUMNS]
               for name in names},
        figures=[Markup(figure) for figure in figures if figure],
        tables=tables,
        config=config,
    )  # fmt: skip
    write_text(folder / "diagnose.html", page)
    return folder / "diagnose.html"


def saes_of(metrics: Sequence[Metric]) -> list[str]:
    """Return the SAEs of the rows, the usual arms first."""
    return ordered((row["sae"] for row in metrics), SAES)


def spell_tokens(tokens: Sequence[str]) -> str:
    """Return the tokens that name a latent, as one reads them."""
    return " ".join(f"\u201c{visible(token).strip()}\u201d" for token in tokens) or "nothing here"


def print_diagnosis(
    metrics: Sequence[Metric], tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Print the sentences, and a table for each split."""
    console = Console()
    cells = {
        name: [spell(number(find(metrics, c.name, split=c.split, sae=name))) for c in COLUMNS]
        for name in saes_of(metrics)
    }
    for table in tables_by_split(COLUMNS, cells):
        console.print(table)
        console.print()
    for question, sentences in answers(metrics, tables).items():
        console.print(Text(question, style="bold"))
        for sentence in sentences:
            console.print(Text(f"  {sentence}"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
