"""`report.html`: one file, no script, no request; every number in it comes from the arguments."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ssae.artifact.replace import write_text
from ssae.report import definitions, figures, sections
from ssae.report.change import WORDS, compare
from ssae.report.contexts import latent_card, visible
from ssae.report.marks import Style
from ssae.report.marks import styles as styles_of
from ssae.report.page import page_environment
from ssae.report.table import (
    BANDS,
    HEADLINE,
    RETRIEVAL,
    RETRIEVERS,
    SAES,
    SPLITS,
    Metric,
    best,
    find,
    finite,
    number,
    ordered,
    spell,
    spell_change,
)
from ssae.report.verdict import describe_bands, verdict

TEXT_LIMIT = (
    1500  # characters of a retrieved document: enough to judge it, and the page stays small
)
NUM_LATENTS = 10
TABLES = ("firing_rates", *(plan.table for plan in (*sections.RANKS, *sections.TAIL)))
"""Whose SAEs are drawn even if metrics.json does not have them."""
BAND_FIGURES = (
    ("perplexity_spliced", "perplexity_ratio", "Perplexity", "with the SAE / without", 1),
    ("fvu", "fvu", "Reconstruction error", "fvu", None),
)


def write_report(
    path: Path,
    *,
    title: str,
    summary: Mapping[str, str],
    metrics: Sequence[Metric],
    tables: Mapping[str, Any],
    config: str,
) -> None:
    """Write the report atomically: the file is the old one or the whole new one.

    Args:
        path: the file; its folder exists.
        title: of the study.
        summary: what was studied (model, corpus, hookpoint, ...), name to text.
        metrics: the rows of metrics.json.
        tables: those of tables.json and "retrieved"; what is absent or empty is reported as not
            measured.
        config: the composed config as text.
    """
    page = render(title=title, summary=summary, metrics=metrics, tables=tables, config=config)
    write_text(path, page)


def render(
    *,
    title: str,
    summary: Mapping[str, str],
    metrics: Sequence[Metric],
    tables: Mapping[str, Any],
    config: str,
) -> str:
    """Return the page of `write_report`."""
    environment = page_environment()
    environment.filters |= {"spell": spell, "change": spell_change, "visible": visible}
    environment.globals |= {"find": find, "number": number, "metrics": metrics}
    firing = tables.get("firing_rates") or []
    listed = [row for table in TABLES for row in tables.get(table) or []]
    names = ordered([r.get("sae") for r in [*metrics, *listed]], SAES)
    styles = styles_of(names)
    latents = tables.get("differing_latents") or []
    return environment.get_template("report.html.jinja").render(
        title=title,
        summary=summary,
        config=config,
        styles=styles,
        definitions=definitions,
        formulas=_formulas(metrics),
        verdict=verdict(metrics),
        columns=HEADLINE,
        groups=[(s, len(list(own))) for s, own in itertools.groupby(c.split for c in HEADLINE)],
        headline=_headline(metrics, names),
        floors=_floors(metrics),
        bands=[_band_figures(metrics, styles, *figure) for figure in BAND_FIGURES],
        band_order=ordered((r["band"] for r in metrics if r["band"] != "all"), BANDS),
        tail=sections.tail_drawings(metrics, tables, styles),
        tail_rows=sections.tail_table(metrics, names),
        ranks=sections.drawings(sections.RANKS, tables, styles),
        spread=sections.drawings(sections.LATENTS, tables, styles),
        firing=sections.drawings(sections.FIRING, tables, styles),
        concepts=sections.concepts(metrics, tables.get("concepts") or [], names),
        dead=_dead(metrics, firing, names),
        retrieval=Markup(figures.retrieval(metrics, title="Retrieval from the pool")),
        retrievers=_retrievers(metrics),
        retrieved=(tables.get("retrieved") or [])[:10],
        text_limit=TEXT_LIMIT,
        latents=[latent_card(latent, styles) for latent in latents[:NUM_LATENTS]],
    )


def _headline(metrics: Sequence[Metric], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for column in HEADLINE:
        found = {sae: find(metrics, column.name, sae=sae, split=column.split) for sae in names}
        winners = best({sae: number(row) for sae, row in found.items()}, column.better)
        for sae, row in found.items():
            change = compare(metrics, column.name, column.split, "generalist", sae=sae)
            shown = change is not None and column.name in WORDS and sae != "generalist"
            rows[sae].append(
                {
                    "value": number(row),
                    "low": finite(row, "low"),
                    "high": finite(row, "high"),
                    "best": sae in winners,
                    "change": change.relative if change is not None and shown else None,
                }
            )
    return rows


def _floors(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    keys = {"clean": "perplexity_clean", "zero": "perplexity_zero"}
    rows = []
    for split in SPLITS:
        found = {key: find(metrics, name, split=split) for key, name in keys.items()}
        tokens = next((row.get("num_tokens") for row in found.values() if row), None)
        rows.append(
            {"split": split, "num_tokens": tokens} | {k: number(r) for k, r in found.items()}
        )
    return rows


def _band_figures(
    metrics: Sequence[Metric],
    styles: Mapping[str, Style],
    name: str,
    drawn: str,
    title: str,
    label: str,
    reference: float | None,
) -> dict[str, Any]:
    drawings = []
    for split in SPLITS:
        heading = f"{title} by token frequency: {split}"
        svg = figures.by_band(
            metrics, name=drawn, split=split, styles=styles, title=heading, label=label,
            reference=reference,
        )  # fmt: skip
        drawings.append((split, Markup(svg), describe_bands(metrics, drawn, split)))
    return {"name": name, "title": title, "drawings": drawings}


def _dead(
    metrics: Sequence[Metric], firing: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for sae in names:
        for split in SPLITS:
            own = next((r for r in firing if (r["sae"], r["split"]) == (sae, split)), {})
            row: dict[str, Any] = {"sae": sae, "split": split}
            for key in ("num_silent", "num_dead", "num_rare"):
                row[key] = own.get(key, number(find(metrics, key, sae=sae, split=split)))
            row |= {key: own.get(key) for key in ("num_latents", "num_tokens")}
            if row["num_silent"] is not None:
                rows.append(row)
    return rows


def _retrievers(metrics: Sequence[Metric]) -> dict[str, dict[str, float | None]]:
    columns = (*RETRIEVAL, "num_documents", "num_tokens")
    names = ordered((row.get("retriever") for row in metrics), RETRIEVERS)
    return {
        name: {column: _whole(number(find(metrics, column, retriever=name))) for column in columns}
        for name in names
    }


def _formulas(metrics: Sequence[Metric]) -> dict[str, list[str]]:
    names = ordered((row["name"] for row in metrics), definitions.METRICS)
    return {
        name: sorted({str(r["formula"]) for r in metrics if r["name"] == name and r.get("formula")})
        for name in names
    }


def _whole(value: float | None) -> float | None:
    """Return a count, which JSON may spell 131.0, as it is printed."""
    return int(value) if value is not None and value > 1 and value.is_integer() else value
