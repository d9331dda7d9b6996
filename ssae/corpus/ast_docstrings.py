"""Read the docstrings of installed Python packages with `ast`, without importing them.

Only the standard library is imported here: worker processes load this file and nothing heavier.
"""

import ast
import importlib.util
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

# Vendored copies repeat other packages, test folders hold no prose.
SKIPPED_FOLDERS = {
    "_vendor", "vendored", "vendor", "externals", "tests", "test", "testing",
    "idlelib", "lib2to3", "site-packages", "node_modules", "__pycache__",
}  # fmt: skip


def package_files(package: str) -> list[tuple[str, str]]:
    """Return (module path, file) of every module of `package`; "stdlib" is the standard library.

    Raises:
        ValueError: the package is not installed here.
    """
    if package == "stdlib":
        root, prefix = Path(sysconfig.get_paths()["stdlib"]), ""
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"corpus.packages names {package!r}, which is not an installed package; "
                f"run `pip install {package}` or leave it out of corpus.packages"
            )
        root, prefix = Path(spec.submodule_search_locations[0]), package
    files = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.isdisjoint(parts[:-1]):
            names = [prefix, *(part for part in parts if part != "__init__")]
            files.append((".".join(name for name in names if name), str(file)))
    return files


def docstrings(module_and_file: tuple[str, str]) -> list[tuple[str, str]]:
    """Return (source, docstring) of a module, its classes and its functions.

    The source is the dotted path, e.g. "scipy.stats._continuous_distns.norm_gen". A file that this
    Python cannot parse (templates, other versions' syntax) has no docstrings.
    """
    module, file = module_and_file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # other people's invalid escapes
            tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return []
    return list(_walk(tree, module))


def _walk(node: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            # Lone surrogates are legal in Python source and illegal in UTF-8 files.
            yield path, text.encode("utf-8", "replace").decode("utf-8")
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", None)
        yield from _walk(child, f"{path}.{name}" if isinstance(name, str) else path)
