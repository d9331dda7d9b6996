"""`candidates.html`: what a person reads before judging latents in candidates.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssae.artifact.replace import write_text
from ssae.report.contexts import pieces, visible
from ssae.report.page import page_environment
from ssae.report.shift_table import spell_width
from ssae.report.table import spell


def write_candidates_page(path: Path, name: str, sections: Sequence[Mapping[str, Any]]) -> None:
    """Write the page: for each SAE its candidates, the largest effect first.

    Args:
        path: the file; its folder exists.
        name: of the study.
        sections: {arm, width, seed, hookpoint, sae, latents}; see probe/candidates.py.
    """
    environment = page_environment()
    environment.filters |= {"spell": spell, "visible": visible, "width": spell_width}
    shown = [
        {**section, "latents": [_card(latent) for latent in section["latents"]]}
        for section in sections
    ]
    page = environment.get_template("candidates.html.jinja").render(
        title=f"{name}: candidates", sections=shown
    )
    write_text(path, page)


def _card(latent: Mapping[str, Any]) -> dict[str, Any]:
    contexts = latent["contexts"]
    largest = max((context["activation"] for context in contexts), default=0.0)
    return {**latent, "contexts": [{**c, "pieces": pieces(c, largest)} for c in contexts]}
