"""Where a saved SAE lies: a folder, or a repository of the Hugging Face hub.

    google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82     owner/repository/sub/folder
    owner/repository@revision/sub/folder                              a branch, tag or commit

Only the files that a format needs are downloaded, into the cache of huggingface_hub; what is there
already needs no network.
"""

import glob
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError

from ssae.sae.formats import FORMATS

REPOSITORY = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?(?P<sub>(/[^/\\]+)*)/?"
)
FILES = sorted({file for module in FORMATS.values() for file in module.FILES})


def locate(path_or_repo_id: str | Path) -> Path:
    """Return the local folder of an SAE, downloading it if it is the id of one on the hub.

    A path that exists is never looked up.

    Raises:
        ValueError: it is neither, or the hub cannot give it.
    """
    path = Path(path_or_repo_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} must be the folder of an SAE, it is a file; give {path.parent}")
    match = REPOSITORY.fullmatch(str(path_or_repo_id))
    # A Path is meant as one; "artifacts/train/3f2a" may be either.
    if isinstance(path_or_repo_id, Path) or not match or ".." in path.parts:
        raise ValueError(
            f"{path} holds no SAE: there is no such folder; give one, or the id of one on the hub: "
            "owner/repository/sub/folder"
        )
    return _download(match["name"], match["revision"], match["sub"].strip("/"))


def _download(name: str, revision: str | None, sub: str) -> Path:
    inside = f"{glob.escape(sub)}/" if sub else ""
    wanted = f"{sub or 'its top folder'} of {name}" + (f" at {revision}" if revision else "")
    try:
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[inside + file for file in FILES]
        )
    # The transport's own exceptions change with the version of huggingface_hub.
    except Exception as error:
        raise ValueError(
            f"there is no folder {name}{'/' if sub else ''}{sub} here, and the hub does not give "
            f"{wanted}: {_first_line(error)}; {_remedy(error, name)}"
        ) from error
    folder = Path(snapshot) / sub
    if not any((folder / file).exists() for file in FILES):
        raise ValueError(
            f"{wanted} has none of the files of an SAE ({', '.join(FILES)})"
            + _others(name, revision)
        )
    return folder


def _others(name: str, revision: str | None) -> str:
    """Return where in the repository SAEs are, as the end of a sentence."""
    try:
        files = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    except Exception:  # offline: the cache knows only what was downloaded
        return "; offline, only what was downloaded before is there: allow the network"
    folders = sorted(
        {str(Path(file).parent) for file in files if Path(file).name in FILES}, key=_natural
    )
    if not folders:
        return "; no folder of it has"
    return f"; these folders have: {', '.join(folders[:8])}" + (
        f" and {len(folders) - 8} more" if len(folders) > 8 else ""
    )


def _remedy(error: Exception, name: str) -> str:
    if isinstance(error, GatedRepoError):
        return f"accept its conditions on https://huggingface.co/{name} and run `hf auth login`"
    return (
        "check the spelling, the network and HF_HUB_OFFLINE, `hf auth login` for a private one, or "
        "give a local copy"
    )


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", text)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
