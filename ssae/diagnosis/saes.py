"""The SAEs that are diagnosed: arms of the study, and others from anywhere."""

from pathlib import Path
from typing import Any, NamedTuple

from ssae.activation.reader import Activations
from ssae.sae import files
from ssae.sae.base import SparseAutoencoder
from ssae.study import Study
from ssae.train import train
from ssae.training.initialise import check_fits


class Diagnosed(NamedTuple):
    """Where an SAE is, and what is known of its training."""

    folder: Path
    identity: Any
    """What makes it this SAE, for the hash of the result."""
    input_scale: float | None
    """By which training scaled activations; None of SAEs trained elsewhere."""
    relatives: list[str]
    """Of the SAEs before it with the same latents the first, and the one just before it."""
    arm: str | None
    """Of the study, that it is the SAE of."""


def find(study: Study) -> dict[str, Diagnosed]:
    """Return the SAEs by name, trained if need be; arms first.

    Raises:
        ValueError: an arm is none of the study's, or a folder holds no SAE.
    """
    settings = study.diagnose
    names = list(study.arms) if settings.arms is None else settings.arms
    unknown = [name for name in names if name not in study.arms]
    if unknown:
        raise ValueError(
            f"diagnose.arms must be among {', '.join(study.arms)}, got {unknown[0]!r}; "
            f"set diagnose.arms=[{next(iter(study.arms))}]"
        )
    others = {_name(path, settings.saes): files.locate(path) for path in settings.saes}
    for folder in others.values():
        files.detect(folder)  # before the time that training takes
    found = {}
    for name in names:
        artifact = train(study, name)
        input_scale = artifact.manifest.get("input_scale")
        relatives = [other for other in found if _root(study, other) == _root(study, name)]
        relatives = list(dict.fromkeys([*relatives[:1], *relatives[-1:]]))
        found[name] = Diagnosed(artifact.path, artifact, input_scale, relatives, name)
    for name, folder in others.items():
        if name in found:
            raise ValueError(f"two SAEs are called {name}; rename the folder {folder}")
        input_scale = files.trained_scale(folder)
        found[name] = Diagnosed(folder, files.identity(folder), input_scale, [], None)
    return found


def load(found: Diagnosed, activations: Activations) -> SparseAutoencoder:
    """Return an SAE that fits these activations.

    Raises:
        ValueError: it reads another width, or reconstructs worse than their mean.
    """
    sae = files.load(found.folder)
    check_fits(sae, found.folder, activations)
    return sae


def _root(study: Study, arm: str) -> str | None:
    """Return the SAE whose latents those of the arm are, number by number."""
    before = study.arms[arm].init_from
    if before is None or study.arms[arm].start != "fine_tune":
        return arm
    return _root(study, before) if before in study.arms else before


def _name(path: str, paths: list[str]) -> str:
    """Return the last part of a path, with those before it where another ends alike."""
    parts = Path(path.rstrip("/")).parts
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[-count:])
        if sum(Path(other.rstrip("/")).parts[-count:] == parts[-count:] for other in paths) == 1:
            break
    else:
        raise ValueError(f"diagnose.saes names {path} twice; give every SAE once")
    return name
