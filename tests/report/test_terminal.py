import io
import re

from rich.console import Console

from ssae.report.terminal import print_table


def shown(metrics, width=80, **options) -> str:
    buffer = io.StringIO()
    print_table(metrics, Console(file=buffer, width=width, **options))
    return buffer.getvalue()


def cells(text: str, name: str) -> list[list[str]]:
    """Return the cells of each row of that name: of a row per split."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [name]]


def test_numbers_stand_in_their_row_and_column(metrics):
    text = shown(metrics)
    subdomain, general = cells(text, "generalist")
    assert subdomain[1:] == ["0.2000", "25.37", "0.9100", "16.25", "0.2500", "0.2200"]
    assert general[1:] == ["0.1300", "31.11", "-0.0500"]
    subdomain, general = cells(text, "specialist")
    assert subdomain[1:] == ["0.1400", "22.37", "0.9400", "16.44", "0.3400", "0.1600"]
    assert general[1:] == ["0.1900", "34.11", "0.2800"]
    assert cells(text, "dense") == [["dense", "0.7000", "0.7170", "0.7340"]]
    assert "subdomain 18.23 without an SAE, 2,842 zero-ablated" in text.replace("\n", " ")


def test_a_table_belongs_to_one_split_and_says_so(metrics):
    text = shown(metrics)
    (subdomain,), (general,) = cells(text, "subdomain"), cells(text, "general")
    assert subdomain == ["subdomain", "fvu", "perplexity", "recovered", "l0", "recall", "error"]
    assert general == ["general", "fvu", "perplexity", "forgetting"]


def test_the_best_value_is_bold_and_l0_never_is(metrics):
    text = shown(metrics, force_terminal=True, color_system="standard")
    for value in ("0.1400", "22.37", "0.9400", "0.3400", "0.1600", "0.1300", "31.11"):
        assert re.search(rf"\x1b\[1m *{re.escape(value)}\x1b\[0m", text)
    for value in ("16.25", "16.44", "0.2000", "25.37"):
        assert not re.search(rf"\x1b\[1m *{re.escape(value)}", text)


def test_one_sae_alone_is_not_called_the_best(metrics):
    alone = [row for row in metrics if row["sae"] == "generalist"]
    text = shown(alone, force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[1m *0.2000", text)
    assert "0.2000" in text
    assert "retriever" not in text


def test_no_name_is_cut_at_80_columns(metrics):
    text = shown(metrics)
    assert "\u2026" not in text
    assert cells(text, "specialist_erm")
    assert max(map(len, text.splitlines())) <= 80


def test_what_was_not_measured_is_a_dash(metrics):
    for row in metrics:
        if row["name"] == "fvu" and row["sae"] == "control":
            row["value"] = float("nan")
    assert cells(shown(metrics), "control")[0][1] == "-"
    assert shown([]) == ""


def test_names_are_not_markup(metrics):
    for row in metrics:
        row["sae"] = "[red]x[/]" if row["sae"] == "control" else row["sae"]
    assert "[red]x[/]" in shown(metrics)
