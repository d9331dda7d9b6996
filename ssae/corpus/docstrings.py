"""The embedded default: the documentation text of the Python packages installed on this machine.

Real prose with a real long tail, on every machine that can run `ssae`, with nothing to download.
"""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ssae.artifact.manifest import file_sha256
from ssae.corpus.ast_docstrings import docstrings, package_files
from ssae.corpus.base import Corpus, share_of_hash
from ssae.corpus.part import Document, Part

# Where the import name is not the distribution's (asking importlib for the map takes seconds).
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "hydra": "hydra-core",
    "yaml": "PyYAML",
    "PIL": "pillow",
}
FILES = 64
"""Of a part."""


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
    """

    keeps_text: ClassVar[bool] = True
    """Parsing takes longer than reading."""

    packages: list[str]
    seeds_source: str
    test_share: float
    general_test_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_shares("test_share", "general_test_share")

    def identity(self) -> dict[str, Any]:
        """Return the version of Python and of every package."""
        versions = {package: _version(package) for package in self.packages if package != "stdlib"}
        return {"python": platform.python_version(), **versions}

    def parts(self) -> Iterable[Part]:
        """Return the modules of all packages, some files at a time."""
        files = [file for package in self.packages for file in package_files(package)]
        return [Modules(files[start : start + FILES]) for start in range(0, len(files), FILES)]

    def own_documents(self) -> Mapping[str, Iterable[Document]]:
        """Return nothing: all splits come out of the same files."""
        return {}

    def split_of(self, document: Document) -> str:
        """Return the split of a docstring, by its source and hash."""
        source, text = document["source"], document["text"]
        if f"{source}.".startswith(f"{self.seeds_source}."):
            return "seeds"
        if self.is_subdomain(source):
            return "subdomain_test" if share_of_hash(text) < self.test_share else "pool"
        return "general_test" if share_of_hash(text) < self.general_test_share else "pool"


@dataclasses.dataclass(frozen=True)
class Modules(Part):
    """The docstrings of some files: (module path, file) each."""

    files: list[tuple[str, str]]

    def documents(self) -> Iterator[Document]:
        """Parse the files; the source of a docstring is its dotted path."""
        for file in self.files:
            for source, text in docstrings(file):
                yield {"text": text, "source": source}


def _version(package: str) -> Any:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:  # code on the path that was never installed
        return {module: file_sha256(Path(file)) for module, file in package_files(package)}
