import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from ssae.probe.candidates import Judge, fingerprints, read_candidates, write_candidates
from ssae.probe.dictionary import Key
from ssae.sae.files import save
from ssae.sae.topk import TopKSAE

TOKENS = ["she", "null", "yes", "1.5", "- x", "#", "a: b", "\u00e9", "\x07", "'", ""]


def latent(number: int, ablate: bool = False, **changes) -> dict:
    values = {
        "latent": number, "ablate": ablate, "effect": 0.0123456, "folds": 2,
        "selectivity": 0.9, "auroc": 0.98765, "cosine": None,
        "tokens": list(TOKENS), "contexts": [{"tokens": ["never", "written"]}],
    }  # fmt: skip
    return values | changes


def section(arm: str = "specialist", width: float = 1, seed: int = 0, **changes) -> dict:
    values = {
        "arm": arm, "width": width, "seed": seed, "hookpoint": "layers.2", "sae": "0f3c",
        "latents": [latent(12, True), latent(3), latent(7, True)],
    }  # fmt: skip
    return values | changes


def place(section: dict) -> tuple[Key, str]:
    return Key(section["arm"], section["width"], section["seed"]), section["hookpoint"]


def known(sections: list[dict]) -> dict:
    return {place(own): own["sae"] for own in sections}


SECTIONS = [
    section(),
    section(width=0.125, latents=[]),
    section("generalist", seed=1, sae="1234567"),
    section(hookpoint="layers.1", sae="1e5", latents=[latent(63)]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.yaml"
    write_candidates(path, SECTIONS, Path("/final/candidates.yaml"))
    return path


def edit(path: Path, change) -> None:
    """Change the sections of a file the way a person may."""
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(sections)
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")


def test_what_is_written_is_read(path: Path):
    assert read_candidates(path, known(SECTIONS)) == {
        place(own): {row["latent"]: row["ablate"] for row in own["latents"]} for own in SECTIONS
    }


def test_the_file_tells_a_person_the_numbers_and_how_to_continue(path: Path):
    text = path.read_text(encoding="utf-8")
    assert "shift.candidates=/final/candidates.yaml" in text
    assert "0.0123" in text
    assert "0.0123456" not in text
    assert "never" not in text
    rows = yaml.safe_load(text)[0]["latents"]
    assert rows[0]["tokens"] == TOKENS
    assert [row["latent"] for row in rows] == [12, 3, 7]  # in the order given
    assert (rows[0]["effect"], rows[0]["auroc"], rows[0]["cosine"]) == (0.0123, 0.988, None)


def test_an_edited_file_is_what_the_person_says(path: Path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(latent: 3,?\s+ablate: )false", r"\1true", text, count=1)
    text = re.sub(r"(latent: 12,?\s+ablate: )true", r"\1false", text, count=1)
    path.write_text(text, encoding="utf-8")
    found = read_candidates(path, known(SECTIONS))
    assert found[place(SECTIONS[0])] == {12: False, 3: True, 7: True}

    def change(sections: list[dict]) -> None:
        sections.reverse()
        sections[-1]["latents"] = [{"latent": 40, "ablate": True}]  # the rest may be deleted
        sections[0]["latents"] = None

    edit(path, change)
    found = read_candidates(path, known(SECTIONS))
    assert found[place(SECTIONS[0])] == {40: True}
    assert found[place(SECTIONS[3])] == {}


def test_sections_of_saes_that_are_not_in_use_are_no_hindrance(path: Path):
    found = read_candidates(path, known(SECTIONS[:1]))
    assert found[place(SECTIONS[0])] == {12: True, 3: False, 7: True}


def test_a_file_of_other_saes_is_refused(path: Path):
    saes = known(SECTIONS) | {place(SECTIONS[2]): "another"}
    with pytest.raises(
        ValueError,
        match=r"candidates\.yaml, section 3 is of another generalist .*width 1, seed 1, layers\.2"
        r".*shift\.candidates=null",
    ):
        read_candidates(path, saes)


def test_a_missing_section_is_refused_with_what_is_missing(path: Path):
    edit(path, lambda sections: sections.pop(1))
    with pytest.raises(
        ValueError,
        match=r"says nothing of the specialist of width 0\.125 and seed 0 at layers\.2; set the "
        r"shift\.seeds, shift\.widths and shift\.hookpoints .*shift\.candidates=null",
    ):
        read_candidates(path, known(SECTIONS))


@pytest.mark.parametrize("content", ["", "# only a comment", "a: b", "42", "[]"])
def test_a_file_without_sections_is_refused(content: str, path: Path):
    path.write_text(content)
    with pytest.raises(ValueError, match=r"says nothing of the specialist.*shift\.candidates=null"):
        read_candidates(path, known(SECTIONS))


@pytest.mark.parametrize("wrong", ["maybe", 1, None, "True", [True]])
def test_ablate_must_be_true_or_false(wrong, path: Path):
    edit(path, lambda sections: sections[0]["latents"][1].update(ablate=wrong))
    with pytest.raises(
        ValueError, match=r"section 1, latent 3: ablate must be true or false, got "
    ) as caught:
        read_candidates(path, known(SECTIONS))
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("name", ["arm", "width", "seed", "hookpoint", "sae", "latents"])
def test_a_section_that_lacks_a_key_is_named(name: str, path: Path):
    edit(path, lambda sections: sections[1].pop(name))
    with pytest.raises(ValueError, match=rf"section 2: arm, width, .*are needed, got .*{name}"):
        read_candidates(path, known(SECTIONS))


@pytest.mark.parametrize(
    "change",
    [
        lambda sections: sections.insert(0, "words"),
        lambda sections: sections[0].update(width="wide"),
        lambda sections: sections[0].update(latents=[5]),
        lambda sections: sections[0].update(latents=7),
        lambda sections: sections[0]["latents"][0].pop("ablate"),
    ],
)
def test_a_section_of_another_shape_is_refused(change, path: Path):
    edit(path, change)
    with pytest.raises(ValueError, match=r"candidates\.yaml, section 1: arm, width"):
        read_candidates(path, known(SECTIONS))


@pytest.mark.parametrize("number", [-1, 1.5, True, "twelve", None])
def test_a_number_that_no_latent_has_is_refused(number, path: Path):
    edit(path, lambda sections: sections[0]["latents"][0].update(latent=number))
    with pytest.raises(ValueError, match=r"candidates\.yaml, section 1"):
        read_candidates(path, known(SECTIONS))


def test_a_latent_that_is_judged_twice_differently_is_refused(path: Path):
    again = {"latent": 3, "ablate": True}
    edit(path, lambda sections: sections[0]["latents"].append(again))
    with pytest.raises(ValueError, match=r"candidates\.yaml, section 1: .*'3 twice"):
        read_candidates(path, known(SECTIONS))


@pytest.mark.parametrize("content", [b"- {a: [", b"\xff\xfe\xfa", b"a: b: c", b"\t- x", b"- \x00"])
def test_a_file_that_is_no_yaml_is_refused(content: bytes, path: Path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shift\.candidates: .*candidates\.yaml is not YAML"):
        read_candidates(path, known(SECTIONS))


def test_a_missing_file_is_refused_with_the_override(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"shift\.candidates: there is no file .*no\.yaml; set .*candidates=null"
    ):
        read_candidates(tmp_path / "no.yaml", {})


def test_yaml_is_never_executed(path: Path, tmp_path: Path):
    done = tmp_path / "done"
    for tag in ("object/apply:os.system", "object/apply:os.mkdir", "object/new:os.mkdir"):
        word = f"touch {done}" if "system" in tag else str(done)
        path.write_text(f"- arm: !!python/{tag} ['{word}']\n")
        with pytest.raises(ValueError, match="is not YAML"):
            read_candidates(path, known(SECTIONS))
        assert not done.exists()


def test_saes_are_known_by_their_weights_and_not_by_their_folder(tmp_path: Path):
    folders = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed)
        sae = TopKSAE(8, 16, k=2, auxk_coefficient=0.0, k_aux=4)
        save(sae, tmp_path / name)
        folders[Key(name, 1, 0), "layers.2"] = tmp_path / name
    a, b, c = fingerprints(folders).values()
    assert a == b != c


def dictionary(selectivity: list[float], sizes: tuple[int, ...] = (8,)):
    sites = [SimpleNamespace(hookpoint=f"layers.{i}", sae=None) for i in range(len(sizes))]
    return SimpleNamespace(
        key=Key("specialist", 1, 0), sites=sites, starts=np.cumsum([0, *sizes]),
        selectivity=np.array(selectivity),
    )  # fmt: skip


def test_without_a_person_selectivity_decides_towards_either_value():
    own = dictionary([0.5, 0.75, 0.74, 0.25, 0.26, 1.0, 0.0, 0.9])
    candidates = np.array([7, 0, 1, 2, 3, 4, 5])
    assert Judge(0.75, None)(own, candidates).tolist() == [7, 1, 3, 5]


def test_a_person_decides_whatever_the_selectivity_and_whatever_the_candidates():
    own = dictionary([1.0] * 8)
    judge = Judge(0.75, {(own.key, "layers.0"): {2: True, 5: False, 6: True}})
    assert sorted(judge(own, np.array([5, 2, 1])).tolist()) == [2, 6]


def test_latents_of_several_sites_are_numbered_through():
    own = dictionary([0.5] * 20, sizes=(8, 12))
    said = {(own.key, "layers.0"): {1: True}, (own.key, "layers.1"): {1: True, 11: True}}
    assert sorted(Judge(0.75, said)(own, np.arange(20)).tolist()) == [1, 9, 19]


@pytest.mark.parametrize("number", [8, 12, 20, -1])
def test_a_number_beyond_an_sae_is_refused(number: int):
    own = dictionary([0.5] * 20, sizes=(8, 12))
    said = {(own.key, "layers.0"): {number: True}, (own.key, "layers.1"): {}}
    with pytest.raises(ValueError, match=f"latent {number} is not one of the 8 of the specialist"):
        Judge(0.75, said)(own, np.arange(20))
