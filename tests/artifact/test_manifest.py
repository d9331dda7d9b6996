"""What is said of a finished folder whose DONE or manifest.json is damaged."""

from pathlib import Path

import pytest

from ssae.artifact.store import build


@pytest.mark.parametrize("name", ["DONE", "manifest.json"])
def test_either_of_the_two_that_vouch_for_each_other_may_be_the_damaged_one(
    tmp_path: Path, name: str
):
    def make(folder: Path) -> dict[str, int]:
        (folder / "data.txt").write_text("data")
        return {}

    path = build(tmp_path, "verb", {}, make).path
    content = (path / name).read_text()
    (path / name).write_text(content[:-1] + "x")
    rule = r"manifest\.json is not what DONE says: one of the two is damaged.*rm -r "
    with pytest.raises(ValueError, match=rule):
        build(tmp_path, "verb", {}, make)
