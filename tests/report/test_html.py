import math
import re

import pytest

from ssae.report.contexts import visible
from ssae.report.html import render, write_report
from ssae.report.table import BANDS, HEADLINE, SAES
from ssae.report.verdict import verdict
from tests.report.reading import ParsedPage, check_inert


class Page(ParsedPage):
    """Collect the numbers of each table row, too."""

    def __init__(self, text: str) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.table = ""
        super().__init__(text)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "table":
            self.table = dict(attrs).get("id") or "other"
            self.tables.setdefault(self.table, [])
        if tag == "tr":
            self.tables[self.table].append([])
        if tag == "data" and self.stack.count("table"):
            self.tables[self.table][-1].append(dict(attrs)["value"] or "")


def page(metrics, tables=None, **options) -> str:
    options = {"title": "T", "summary": {"model": "tiny"}, "config": "k: 16"} | options
    return render(metrics=metrics, tables=tables or {}, **options)


def only(tables, *names) -> dict:
    """Return some of the tables: every drawing takes its time."""
    return {name: tables[name] for name in names}


def test_headline_numbers_are_the_given_ones(metrics):
    rows = [row for row in Page(page(metrics)).tables["headline"] if row]
    for sae, row in zip(SAES, rows, strict=True):
        given = [
            next(
                m["value"]
                for m in metrics
                if (m["name"], m["split"], m["sae"], m["band"])
                == (column.name, column.split, sae, "all")
            )
            for column in HEADLINE
        ]
        assert [float(value) for value in row] == given


def test_all_numbers_of_metrics_json_are_listed(metrics):
    rows = [row for row in Page(page(metrics)).tables["metrics"] if row]
    assert [float(row[0]) for row in rows] == [m["value"] for m in metrics]


def test_numbers_by_band_and_of_retrieval_are_the_given_ones(metrics):
    parsed = Page(page(metrics))
    perplexity = [row for row in parsed.tables["other"] if row][: len(BANDS)]
    for k, row in enumerate(perplexity):
        expected = [(1.3 + i / 8) * 1000.5 / 4**k for i in range(4)] + [1000.5 / 4**k]
        assert [float(value) for value in row] == expected
    recall = [row for row in parsed.tables["retrieval"] if row][1]
    assert [float(value) for value in recall] == [0.1 + 0.3 * i + 0.017 for i in range(3)]


def test_the_page_fetches_nothing_and_runs_nothing(metrics, tables):
    check_inert(page(metrics, tables))


def test_hostile_texts_are_shown_and_not_obeyed(metrics, tables):
    hostile = "</title><script>alert(3)</script>{{ 7*7 }}\x00\ud800"
    text = page(
        metrics,
        only(tables, "differing_latents", "retrieved"),
        title=hostile,
        summary={hostile: hostile},
        config=hostile,
    )
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text
    assert "<script>alert(3)</script>{{ 7*7 }}\u2400\ufffd" in parsed.text
    assert "\u2400\u241b\ufffd<U+202E>" in parsed.text
    assert "\U0001f600" in parsed.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", text)
    text.encode("utf-8")


def test_ids_of_the_page_are_unique(metrics, tables):
    ids = [value for _, name, value in Page(page(metrics, tables)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_contexts_are_shaded_in_proportion(metrics, tables):
    text = page(metrics, only(tables, "differing_latents"))
    assert '<i class="peak" style="--a:1.00" title="2.500">&lt;script&gt;' in text
    assert '<i style="--a:0.40" title="1.000">\U0001f600</i>' in text
    assert "It never fires on the texts looked at." in text


def test_white_space_is_visible_and_short():
    assert visible("a\n\tb") == "a\u21b5\u21e5b"
    assert visible(" a b") == " a b"
    assert visible(" " * 20) == "\xb7" * 3
    assert visible(" ") == "\xb7"


def test_long_documents_are_cut_and_say_so(metrics, tables):
    assert "more characters]" in page([], only(tables, "retrieved"))


def test_the_file_is_written_whole_and_the_same_again(metrics, tables, tmp_path):
    path = tmp_path / "report.html"
    tables = only(tables, "differing_latents", "retrieved", "log_ratios")
    metrics = [row for row in metrics if row["band"] == "all"]
    options = {"title": "T", "summary": {}, "metrics": metrics, "config": ""}
    write_report(path, tables=tables, **options)
    first = path.read_bytes()
    write_report(path, tables=tables, **options)
    assert path.read_bytes() == first
    assert first.decode().endswith("</html>\n")
    with pytest.raises(KeyError):
        write_report(path, tables={"retrieved": [], "differing_latents": [{}]}, **options)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_absent_is_called_not_measured(metrics):
    text = Page(page([], {})).text
    for what in ("Firing rates", "Retrieval", "Error by token rank", "Tail concepts",
                 "How latents spread, and how they moved", "Labelled concepts"):  # fmt: skip
        assert f"{what}: not measured" in text
    assert "Latents that differ between generalist and specialist: not measured" in text
    assert "No verdict" in text
    no_bands = Page(page([row for row in metrics if row["band"] == "all"])).text
    assert "Perplexity by token frequency: not measured" in no_bands


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_holes_do_not_stop_the_report(metrics, tables, hole):
    for row in metrics[::3]:
        row.update(value=hole, low=hole, high=None, num_tokens=None)
    tables["differing_latents"][0].update(log_ratio=hole, decoder_cosine=hole)
    tables["differing_latents"][0]["contexts"]["specialist"][0]["activations"][0] = hole
    parsed = Page(page(metrics, tables))
    assert "nan" not in re.findall(r"\w+", parsed.text)
    assert "not measured" in parsed.text or hole == math.inf


def test_one_sae_alone_gets_a_report_and_no_verdict(metrics, tables):
    alone = [row for row in metrics if row["sae"] in (None, "generalist")]
    rows = [
        row
        for row in Page(page(alone, only(tables, "spread", "log_ratios"))).tables["headline"]
        if row
    ]
    assert rows[0][0] == "0.2"
    assert verdict(alone).answer.startswith("No verdict")


def test_numbers_of_an_older_evaluation_get_a_report(metrics, tables):
    new = ("tail_", "forgetting", "concept_")
    old = [row for row in metrics if not row["name"].startswith(new)]
    drawn = {name: tables[name] for name in ("error_by_rank", "firing_rates", "differing_latents")}
    parsed = Page(page(old, drawn))
    assert "Tail concepts: not measured" in parsed.text
    assert [float(value) for value in parsed.tables["headline"][2][:4]] == [0.2, 25.37, 0.91, 16.25]
    assert "tail" not in parsed.tables


def test_every_figure_has_a_caption_computed_from_its_data(metrics, tables):
    text = page(metrics, tables)
    figures = text.count("<figure><svg")
    assert figures == 2 + 4 + 4 + 2 + 4 + 4 + 2 + 1  # tail, represented, bands, ranks, latents, ...
    captions = re.findall(r"<figcaption>([^<]+)", text)
    assert len(captions) == figures - 1  # the bars of retrieval carry their numbers
    assert "tail_recall on subdomain_test: 0.2500 (generalist)" in captions[0]


def test_sections_stand_in_the_order_of_a_reader(metrics, tables):
    headings = re.findall(r"<h2>(.*?)</h2>", page(metrics))
    assert headings[:8] == [
        "Headline numbers", "Tail concepts", "Perplexity by token frequency",
        "Reconstruction error by token frequency", "Error against token rank", "Latents",
        "Silent and rare latents", "Labelled concepts",
    ]  # fmt: skip


def test_the_headline_groups_span_their_columns(metrics):
    spans = re.findall(r'colspan="(\d+)">(\w+)<', page(metrics))
    assert [(split, int(width)) for width, split in spans] == [
        (split, sum(column.split == split for column in HEADLINE))
        for split in ("subdomain_test", "general_test")
    ]


def test_numbers_of_the_tail_and_of_concepts_are_the_given_ones(metrics, tables):
    parsed = Page(page(metrics, only(tables, "concepts")))
    tail = [row for row in parsed.tables["tail"] if row]
    assert [float(value) for value in tail[3]] == pytest.approx([0.34, 0.09, 0.16, 8 / 11])
    recall = [row for row in parsed.tables["concept-recall"] if row]
    assert [float(value) for value in recall[1]] == pytest.approx([0.54, 0.64, 0.74])
    first = [row for row in parsed.tables["concepts"] if row][0]
    assert [float(value) for value in first] == pytest.approx([90, 0.71, 0.76, 0.81, 0.86])
    assert "<b>numpy</b>" in parsed.text
