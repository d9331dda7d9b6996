"""The dashboard is built without a network; what it shows is what runs log."""

import sys
from typing import Any

import pytest

from ssae import dashboard
from ssae.dashboard import main, workspace
from ssae.training.results import HEADLINE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces.*")


def sections() -> dict[str, list[dict[str, Any]]]:
    model = workspace("somebody", "ssae")._to_model().model_dump(by_alias=True)
    assert (model["entity"], model["project"]) == ("somebody", "ssae")
    found = model["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [p["config"] for p in section["panels"]] for section in found}


def test_the_dashboard_has_curves_bars_and_scatters_of_what_is_logged():
    found = sections()
    assert list(found) == ["training", "Pareto", "studied arms", "reports"]
    drawn = [panel["metrics"] for panel in found["training"]]
    for key in ("train/fvu", "train/loss", "train/effective_sample_size"):
        assert [key] in drawn
    assert {panel["xAxis"] for panel in found["training"]} == {"trainer/global_step"}
    assert [panel["metrics"] for panel in found["studied arms"]] == [[key] for key in HEADLINE]
    axes = [(panel["xAxis"], panel["yAxis"]) for panel in found["Pareto"]]
    assert ("summary:val/l0", "summary:val/perplexity_subdomain") in axes
    named = {key.removeprefix("summary:") for pair in axes for key in pair}
    assert named <= set(HEADLINE)


def test_runs_are_grouped_and_sorted_by_tail_recall():
    model = workspace("somebody", "ssae")._to_model().model_dump(by_alias=True)
    [runs] = model["spec"]["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]][:2] == ["group", "jobType"]
    assert runs["sort"]["keys"][0]["key"]["name"] == "val/tail_recall"


def test_the_address_of_what_was_saved_is_returned(monkeypatch: pytest.MonkeyPatch):
    class Saved:
        url = "https://wandb.example/somebody/ssae"

        def save(self) -> "Saved":
            return self

    asked = []
    monkeypatch.setattr(dashboard, "workspace", lambda *names: asked.append(names) or Saved())
    assert main(["somebody/ssae"]) == Saved.url
    assert asked == [("somebody", "ssae")]


@pytest.mark.parametrize("words", [[], ["ssae"], ["/ssae"], ["a/b/c"], ["a/b", "c/d"]])
def test_anything_but_one_project_is_refused(words: list[str]):
    with pytest.raises(ValueError, match="entity/project"):
        main(words)


def test_without_the_extra_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[dashboard\]\""):
        workspace("somebody", "ssae")
