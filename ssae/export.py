"""ssae export: write a trained SAE in the format of another library, and check what was written."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssae import __version__
from ssae.sae.base import SparseAutoencoder
from ssae.sae.files import check_holds, read, write
from ssae.sae.formats import FORMATS
from ssae.sae.formats.content import Content, build
from ssae.study import Study
from ssae.train import train

NUM_TOKENS = 64
TOLERANCE = 1e-4
"""Of a difference, relative to values above 1: many times the rounding of a folded bias."""
SWITCHING = 1e-4
"""Share of latents that may switch on or off: those within rounding of their threshold."""


class Exported(NamedTuple):
    """What was written."""

    path: Path
    manifest: dict[str, Any]
    """What to say of it."""


def export(study: Study) -> Exported:
    """Write the SAE of `export.sae`, or the trained one of `arm`, into `export.path`.

    Raises:
        ValueError: the folder is not ours to write, the format cannot hold the architecture, or
            what was written computes something else.
    """
    settings = study.export
    if settings.path is None:
        raise ValueError("export.path must name the folder to write; set export.path=my_sae")
    folder = Path(settings.path).expanduser()
    _check_free(folder)
    source = str(train(study, study.arm).path) if settings.sae is None else settings.sae
    content = read(source)
    check_holds(settings.format, content.architecture)
    facts = {"exported_by": f"ssae {__version__}", "exported_from": source}
    content = content._replace(metadata=content.metadata | facts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unchecked = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unchecked.chmod(0o755)  # mkdtemp's is for this user alone
        write(content, unchecked, settings.format)
        written = read(unchecked, settings.format)
        difference = _difference(content, written)
        if folder.exists():
            shutil.rmtree(folder)  # empty, or an earlier export
        unchecked.rename(folder)
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    as_what = "" if written.architecture == content.architecture else f" as {written.architecture}"
    said = {
        "format": settings.format,
        "wrote": ", ".join(sorted(path.name for path in folder.iterdir())),
        "from": source,
        "architecture": content.architecture + as_what,
        "checked": f"loaded again, it differs by {difference} on random input",
    }
    return Exported(folder, said)


def _check_free(folder: Path) -> None:
    """Refuse a folder with anything in it but an earlier export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    with contextlib.suppress(ValueError):
        known = {name for module in FORMATS.values() for name in module.FILES}
        only_sae = folder.is_dir() and {path.name for path in folder.iterdir()} <= known
        if only_sae and "exported_by" in read(folder).metadata:
            return
    raise ValueError(
        f"export.path={folder} must be a new folder, an empty one or an earlier export; it holds "
        "something else: choose another or remove it"
    )


@torch.no_grad()
def _difference(content: Content, written: Content) -> str:
    """Compare both on random input and return how far they are apart."""
    ours, theirs = build(content, "source"), build(written, "export")
    generator = torch.Generator().manual_seed(0)
    # Activations of any size: whatever the thresholds are, some latents fire and some do not.
    sizes = torch.logspace(-1, 2, NUM_TOKENS)[:, None]
    x = ours.b_dec + sizes * torch.randn(NUM_TOKENS, ours.d_in, generator=generator)
    latents, others = ours.encode(x), theirs.encode(x)
    switched = (latents > 0) != (others > 0)
    by_latents = _relative(latents, others, ~switched)
    # A token with a switched latent has another reconstruction.
    by_recon = _relative(_recon(ours, x), _recon(theirs, x), ~switched.any(1, keepdim=True))
    share = switched.float().mean().item()
    if max(by_latents, by_recon) > TOLERANCE or share > SWITCHING:
        raise ValueError(
            f"the written SAE must compute what its source does; latents differ by {by_latents:.1e}"
            f", recon by {by_recon:.1e}, a share of {share:.1e} of the latents switches on or off; "
            "this is a defect of ssae: please report it"
        )
    return f"{by_latents:.1e} in latents and {by_recon:.1e} in recon"


def _recon(sae: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor:
    return sae.decode(sae.encode(x))


def _relative(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return float(((a - b).abs() / a.abs().clamp_min(1) * where).max())
