"""candidates.yaml: the latents that a person may judge, and what the person says.

- arm: specialist
  width: 1
  seed: 0
  hookpoint: gpt_neox.layers.2
  sae: 0f3c...                       # of its weights: a file of other SAEs is refused
  latents:
  - {latent: 12, ablate: true, effect: 0.021, selectivity: 0.97, ...}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssae.artifact.replace import write_text
from ssae.artifact.store import content_hash
from ssae.probe.dictionary import Dictionary, Key
from ssae.sae.files import identity

HEADER = """\
# Latents that push the biased probe towards the right class, the largest effect first. `ablate`
# says which of them are taken out: true where the latent carries the spurious attribute.
# candidates.html shows what each of them reads. Edit, then give the same command again with
#   shift.candidates={path}
"""
Sections = Sequence[Mapping[str, Any]]
Place = tuple[Key, str]
"""Which SAE: (arm, width, seed), hookpoint."""


def fingerprints(folders: Mapping[Place, Path]) -> dict[Place, str]:
    """Return what each SAE is known by in the file."""
    return {place: content_hash(identity(folder)) for place, folder in folders.items()}


def write_candidates(path: Path, sections: Sections, final: Path) -> None:
    """Write the file; `final` is where it will be found."""
    kept = [
        {
            **{key: section[key] for key in ("arm", "width", "seed", "hookpoint", "sae")},
            "latents": [_short(row) for row in section["latents"]],
        }
        for section in sections
    ]
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(path, HEADER.format(path=final) + text)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("latent", "ablate", "effect", "folds", "selectivity", "auroc", "cosine", "tokens")
    return {
        name: float(f"{row[name]:.3g}") if isinstance(row[name], float) else row[name]
        for name in names
    }


def read_candidates(path: Path, saes: Mapping[Place, str]) -> dict[Place, dict[int, bool]]:
    """Return {SAE: {latent: whether it is to be ablated}} of an edited file.

    Args:
        path: the file.
        saes: the SAEs of this study, by what they are known by.

    Raises:
        ValueError: the file is not what was written, or is of other SAEs.
    """
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"shift.candidates: there is no file {path}; set shift.candidates=null to write one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"shift.candidates: {path} is not YAML: {error}") from error
    found: dict[Place, dict[int, bool]] = {}
    for number, section in enumerate(sections if isinstance(sections, list) else [], start=1):
        try:
            place = (
                Key(str(section["arm"]), float(section["width"]), int(section["seed"])),
                str(section["hookpoint"]),
            )
            known, rows = section["sae"], section["latents"]
            judged = {row["latent"]: row["ablate"] for row in rows or []}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, section {number}: arm, width, seed, hookpoint, sae and latents with "
                f"latent and ablate are needed, got {type(error).__name__}: {error}"
            ) from error
        numbers = [row["latent"] for row in rows or []]
        odd = [latent for latent in numbers if type(latent) is not int or latent < 0]
        if odd or len(judged) < len(numbers):
            twice = next((n for n in numbers if numbers.count(n) > 1), None)
            raise ValueError(
                f"{path}, section {number}: every latent must be a number of the SAE, once, got "
                f"{odd[0] if odd else f'{twice} twice'!r}"
            )
        wrong = [latent for latent, ablate in judged.items() if not isinstance(ablate, bool)]
        if wrong:
            raise ValueError(
                f"{path}, section {number}, latent {wrong[0]}: ablate must be true or false, got "
                f"{judged[wrong[0]]!r}"
            )
        if place in saes and saes[place] != str(known):
            raise ValueError(
                f"{path}, section {number} is of another {place[0].arm} than this study has "
                f"(width {place[0].width:g}, seed {place[0].seed}, {place[1]}): the SAEs or their "
                "settings have changed; write the file anew with shift.candidates=null"
            )
        found[place] = judged
    missing = [place for place in saes if place not in found]
    if missing:
        key, hookpoint = missing[0]
        raise ValueError(
            f"{path} says nothing of the {key.arm} of width {key.width:g} and seed {key.seed} at "
            f"{hookpoint}; set the shift.seeds, shift.widths and shift.hookpoints it was written "
            "with, or write it anew with shift.candidates=null"
        )
    return found


class Judge:
    """Says which latents are ablated: a person where there is a file, else the selectivity.

    Args:
        min_selectivity: of a candidate that carries the attribute, towards either value.
        judged: what a person says; null: nobody does.
    """

    def __init__(
        self, min_selectivity: float, judged: Mapping[Place, Mapping[int, bool]] | None
    ) -> None:
        self.min_selectivity, self.judged = min_selectivity, judged

    def __call__(self, dictionary: Dictionary, candidates: np.ndarray) -> np.ndarray:
        """Return the latents to be ablated: of the candidates, or all that a person says.

        Raises:
            ValueError: a person names a latent that the SAE does not have.
        """
        if self.judged is None:
            distance = np.abs(dictionary.selectivity[candidates] - 0.5)
            return candidates[distance >= self.min_selectivity - 0.5]
        chosen: list[int] = []
        bounds = zip(dictionary.starts[:-1], dictionary.starts[1:], strict=True)
        for (start, stop), site in zip(bounds, dictionary.sites, strict=True):
            own = self.judged[dictionary.key, site.hookpoint]
            beyond = [latent for latent in own if not 0 <= latent < stop - start]
            if beyond:
                raise ValueError(
                    f"shift.candidates: latent {beyond[0]} is not one of the {stop - start} of the "
                    f"{dictionary.key.arm} at {site.hookpoint}; remove it"
                )
            chosen += [int(start) + latent for latent, ablate in own.items() if ablate]
        return np.array(chosen, dtype=np.int64)
