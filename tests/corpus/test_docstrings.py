from pathlib import Path

import pytest

from ssae.corpus.ast_docstrings import docstrings, package_files
from ssae.corpus.base import SPLITS
from ssae.corpus.docstrings import Docstrings

SOURCE = '''"""The module."""
class Outer:
    """The class."""
    def method(self):
        """The method."""
        def inner():
            """The closure."""
    async def silent(self): pass
def bad(): "\\ud800"
'''


def corpus(**changes) -> Docstrings:
    values = {
        "min_characters": 100, "max_characters": None, "subdomain_source": "json",
        "packages": ["fake_package"], "seeds_source": "fake_package.a", "test_share": 0.5,
        "general_test_share": 0.1, "num_workers": 1,
    }  # fmt: skip
    return Docstrings(**values | changes)


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with 40 docstrings in each of four modules, and folders to leave out."""
    for name in ("a", "b", "c", "d", "tests/e", "_vendor/f"):
        file = tmp_path / "fake_package" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        filler = "long enough to count as prose " * 5
        file.write_text(
            "\n".join(f'def f{i}(): """{name} function {i} {filler}"""' for i in range(40))
        )
    (tmp_path / "fake_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return "fake_package"


def test_every_docstring_has_its_dotted_path(tmp_path: Path):
    file = tmp_path / "m.py"
    file.write_text(SOURCE)
    assert docstrings(("p.m", str(file))) == [
        ("p.m", "The module."),
        ("p.m.Outer", "The class."),
        ("p.m.Outer.method", "The method."),
        ("p.m.Outer.method.inner", "The closure."),
        ("p.m.bad", "?"),
    ]


@pytest.mark.parametrize("content", ["def (", "x = '\x00'", "\xff"])
def test_a_file_that_cannot_be_parsed_has_none(tmp_path: Path, content: str):
    file = tmp_path / "m.py"
    file.write_bytes(content.encode("latin-1"))
    assert docstrings(("m", str(file))) == []


def test_tests_and_vendored_copies_are_not_read(fake_package: str):
    modules = [module for module, _ in package_files(fake_package)]
    assert modules == [fake_package, *(f"{fake_package}.{name}" for name in "abcd")]


def test_the_standard_library_has_no_prefix():
    modules = {module for module, _ in package_files("stdlib")}
    assert {"json", "json.decoder", "statistics"} <= modules


def test_an_unknown_package_is_named():
    with pytest.raises(ValueError, match="'no_such_package'.*pip install no_such_package"):
        package_files("no_such_package")


def test_splits_follow_the_source(fake_package: str, read):
    found = read(corpus(subdomain_source="fake_package.b"))
    splits = {name: found.documents(name) for name in SPLITS}

    def modules(split: str) -> set[str]:
        return {source.split(".")[1] for _, source in splits[split]}

    assert modules("seeds") == {"a"}
    assert modules("subdomain_test") == {"b"}
    assert modules("general_test") <= {"c", "d"}
    assert modules("pool") == {"b", "c", "d"}
    assert sum(map(len, splits.values())) == 160
    assert 8 < len(splits["subdomain_test"]) < 32
    # The text is stored with the corpus: another reading would have to parse again.
    assert list(found.artifact.path.glob("blocks/*.parquet"))


@pytest.mark.parametrize("name", ["test_share", "general_test_share"])
def test_shares_out_of_range_are_refused_with_the_override(name: str):
    with pytest.raises(ValueError, match=f"set corpus.{name}="):
        corpus(**{name: 1.0})


def test_the_identity_names_the_versions():
    identity = corpus(packages=["numpy", "stdlib"]).identity()
    assert set(identity) == {"python", "numpy"}
