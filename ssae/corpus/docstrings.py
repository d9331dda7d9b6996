"""The embedded default: the documentation text of the Python packages installed on this machine.

Real prose with a real long tail, on every machine that can run `ssae`, with nothing to download.
"""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import joblib
from rich.progress import track

from ssae.artifact.manifest import file_sha256
from ssae.corpus.ast_docstrings import docstrings_of_files, package_files
from ssae.corpus.base import Corpus, Document, share_of_hash

# Where the import name is not the distribution's (asking importlib for the map takes seconds).
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "hydra": "hydra-core",
    "yaml": "PyYAML",
    "PIL": "pillow",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Docstrings(Corpus):
    """Docstrings of modules, classes and functions; source = dotted path.

    The subdomain is everything below `subdomain_source`; the share `test_share` of it (by document
    hash) is the subdomain's test split. The seeds are the docstrings below `seeds_source`, another
    package's words for the same subject.

    Args:
        packages: import names of installed packages; "stdlib" is the standard library.
        seeds_source: dotted path below which every docstring is a seed.
        test_share: share of the subdomain held out, in (0, 1).
        general_test_share: share of the rest held out, in (0, 1).
        num_workers: parsing processes; null is one per core.
    """

    packages: list[str]
    seeds_source: str
    test_share: float
    general_test_share: float
    num_workers: int | None = dataclasses.field(default=None, metadata={"content": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("test_share", "general_test_share")

    def identity(self) -> dict[str, Any]:
        """Return the version of Python and of every package."""
        versions = {package: _version(package) for package in self.packages if package != "stdlib"}
        return {"python": platform.python_version(), **versions}

    def read(self) -> dict[str, Iterable[Document]]:
        """Parse every file and split the docstrings by their source and hash."""
        files = [file for package in self.packages for file in package_files(package)]
        splits: dict[str, list[Document]] = {
            "pool": [], "seeds": [], "subdomain_test": [], "general_test": []
        }  # fmt: skip
        chunks = [files[start : start + 64] for start in range(0, len(files), 64)]
        # joblib, because its processes may have children: a job of a parallel sweep is one itself.
        workers = joblib.Parallel(self.num_workers or os.cpu_count(), return_as="generator")
        parsed: Any = workers(joblib.delayed(docstrings_of_files)(chunk) for chunk in chunks)
        for found in track(parsed, "reading docstrings", total=len(chunks)):
            for source, text in found:
                splits[self._split(source, text)].append({"text": text, "source": source})
        return dict(splits)

    def _split(self, source: str, text: str) -> str:
        if f"{source}.".startswith(f"{self.seeds_source}."):
            return "seeds"
        if self.subdomain_source and f"{source}.".startswith(f"{self.subdomain_source}."):
            return "subdomain_test" if share_of_hash(text) < self.test_share else "pool"
        return "general_test" if share_of_hash(text) < self.general_test_share else "pool"


def _version(package: str) -> Any:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:  # code on the path that was never installed
        return {module: file_sha256(Path(file)) for module, file in package_files(package)}
