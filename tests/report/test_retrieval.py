import io
import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
from rich.console import Console

from ssae.report.excerpt import one_line
from ssae.report.retrieval import Retrieved, print_selection, render, write_retrieval_page
from tests.report.reading import check_inert

HOSTILE = '</pre></svg><script>alert(1)</script>{{ 7*7 }}\x00\x1b[31m\ud800\u202e"><img src=//e.x>'
STORED = HOSTILE.replace("\ud800", "")  # Arrow holds no half surrogate pairs
VOID = {"meta", "link", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Collect tags, attributes, text and the numbers and cells of tables; check the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], [], [], ""
        self.tables, self.table = {}, ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID or "svg" in self.stack:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.table = dict(attrs)["id"]
            self.tables[self.table] = []
        if tag == "tr":
            self.tables[self.table].append([])
        if tag == "data" and "table" in self.stack:
            self.tables[self.table][-1].append(float(dict(attrs)["value"]))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def documents(num, **columns) -> datasets.Dataset:
    draw = np.random.default_rng(0)
    given = {
        "text": [f"text {i} of the selection" for i in range(num)],
        "source": [("physics", "reviews", "comp.sys")[i % 3] for i in range(num)],
        "score": np.sort(draw.random(num).astype(np.float32))[::-1].astype(float).tolist(),
        "rank": list(range(1, num + 1)),
        "retriever": ["dense"] * num,
        "query": [i % 2 for i in range(num)],
        "hash": ["h"] * num,
        "num_tokens": draw.integers(1, 500, num).tolist(),
        "num_characters": [20] * num,
    }
    return datasets.Dataset.from_dict(given | columns)


def selection(num=50, num_pool=400, chosen=None, **fields) -> Retrieved:
    chosen = documents(num) if chosen is None else chosen
    others = np.random.default_rng(1).random(num_pool - len(chosen)) * min(chosen["score"][:])
    scores = np.concatenate([chosen["score"][:], others]).astype(np.float32)
    sources = [*chosen["source"], *["reviews"] * (num_pool - len(chosen))]
    sample = [f"pool {i} of words" for i in range(30)]
    given = Retrieved(chosen, ["seed nought", "seed one"], scores, sources, sample, ["r"] * 30, {})
    return given._replace(**fields)


def page(given, **options) -> str:
    return render(given, **({"title": "T", "summary": {}, "quality": {}} | options))


def test_the_numbers_are_those_of_the_selection():
    given = selection(left_out={"near duplicates": 12, "seed full": 40})
    chosen = given.documents.to_pandas()
    parsed = Page(page(given, quality={"precision": 0.625, "recall": 0.125}))
    tokens = int(chosen["num_tokens"].sum())
    assert f"50 documents with {tokens:,} tokens, chosen by dense from a pool of 400" in parsed.text
    assert "precision 0.6250, recall 0.1250." in parsed.text
    assert "52 documents that scored well enough were left out" in parsed.text
    assert parsed.tables["left_out"][1:] == [[12], [40]]
    by_seed = chosen.groupby("query")["num_tokens"].agg(["size", "sum"]).sort_values("sum")[::-1]
    expected = [[n, total, pytest.approx(total / tokens)] for n, total in by_seed.to_numpy()]
    assert parsed.tables["seeds"][1:] == expected
    counts, pool = Counter(chosen["source"]), Counter(given.sources)
    rows = [
        [pytest.approx(n / 50), pool[s] / 400, n, pytest.approx(n / 50 / (pool[s] / 400))]
        for s, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    assert parsed.tables["sources"][1:] == rows
    quartiles = chosen["score"].quantile([0, 0.25, 0.5, 0.75, 1])
    assert parsed.tables["scores"][1] == pytest.approx(quartiles.tolist(), rel=1e-6)


def test_best_and_border_are_shown_and_nothing_between():
    shown = Page(page(selection(50))).text
    found = {int(n) for n in re.findall(r"text (\d+) of the selection", shown.split("The best")[1])}
    assert found == {*range(20), *range(40, 50)}
    assert "There are no more documents" in Page(page(selection(20))).text


def test_hostile_texts_are_shown_and_not_obeyed(tmp_path):
    bad = [STORED, "x" * 1_000_000, "\u05e9\u05dc\u05d5\u05dd \u202e", "", "\u661f\u7cfb", " \n"]
    chosen = documents(6, text=bad, source=bad)
    given = selection(6, 400, chosen, seeds=[HOSTILE, "y" * 1_000_000], left_out={HOSTILE: 1})
    given = given._replace(sample_texts=[*bad, HOSTILE], sample_sources=[*bad, HOSTILE])
    write_retrieval_page(
        tmp_path / "p.html", given, title=HOSTILE, summary={HOSTILE: HOSTILE}, quality={}
    )
    text = (tmp_path / "p.html").read_text("utf-8")
    assert len(text) < 150_000
    parsed = Page(text)
    check_inert(text)
    assert "<script>alert(1)</script>{{ 7*7 }}" in parsed.text
    assert "[... 999,600 more characters]" in parsed.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", text)


def test_every_figure_has_a_name_and_valid_xml():
    text = page(selection())
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert [ElementTree.fromstring(svg).get("aria-label") for svg in drawings] == [
        "Scores of the pool and of the selection",
        "Map: texts with the same words lie together",
    ]


@pytest.mark.parametrize(
    "given",
    [
        selection(1),
        selection(1, 1, sample_texts=[], sample_sources=[]),
        selection(4, 4, documents(4, score=[0.5] * 4)),
        selection(9, scores=np.full(400, -np.inf, np.float32)),
        selection(9, seeds=[], chosen=documents(9, query=[-1] * 9)),
        selection(3, chosen=documents(3, score=[1e30, 0.0, -np.inf])),
    ],
    ids=["one document", "nothing else", "equal scores", "not scored", "no seed known", "infinite"],
)
def test_corner_cases_have_a_page_and_a_table(given):
    parsed = Page(page(given))
    assert "nan" not in re.findall(r"\w+", parsed.text)
    assert printed(given)


def test_what_the_retriever_did_not_score_is_said():
    scores = np.full(400, -np.inf, np.float32)
    scores[:70] = 0.25
    given = selection(10, scores=scores, chosen=documents(10, score=[0.25] * 10, query=[-1] * 10))
    text = Page(page(given)).text
    assert "70 of 400 documents of the pool were scored; the retriever did not look" in text
    assert "70 of them reach the lowest selected score; 10 were selected." in text
    assert "The retriever does not say which seed" in text


def test_numbers_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="scores and sources .* got 400 and 1"):
        page(selection(sources=["x"]))


def printed(given, width=80, **options) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, **options)
    print_selection(given.documents, given.seeds, console, num_shown=5)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_shows_best_border_and_the_largest_seed(width):
    given = selection(50)
    chosen = given.documents.to_pandas()
    lines = printed(given, width).splitlines()
    assert max(map(len, lines)) <= width
    cells = [line.split() for line in lines if re.match(r"\d+ +0\.", line)]
    assert [int(row[0]) for row in cells] == [1, 2, 3, 4, 5, 48, 49, 50]
    for row in cells:
        own = chosen.iloc[int(row[0]) - 1]
        assert float(row[1]) == pytest.approx(own["score"], abs=1e-4)
        assert row[2:5] == [str(own["num_tokens"]), str(own["query"]), own["source"]]
    total, by_seed = chosen["num_tokens"].sum(), chosen.groupby("query")["num_tokens"].sum()
    words = " ".join(" ".join(lines).split())
    share = 100 * by_seed.max() / total
    assert f"50 documents, {total:,} tokens; seed {by_seed.idxmax()} brought {share:.1f} %" in words


def test_the_terminal_obeys_no_text():
    bad = [STORED, "[red]x[/] \x9b2J", "\u661f\u7cfb " * 99, "z" * 1_000_000, "", "a\u2028b"]
    given = selection(6, 400, documents(6, text=bad, source=bad), seeds=[HOSTILE] * 2)
    text = printed(given)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\ud800-\udfff]", text)
    assert "[red]x[/]" in text
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    print_selection(given.documents, given.seeds, Console(file=ascii_only, width=80))


def test_one_line_is_short_and_says_that_it_was_cut():
    assert one_line("\n a\t\tb \n", 10) == "a b"
    assert one_line("x" * 1_000_000, 10) == "x" * 9 + "\u2026"
    assert one_line(" " * 1_000_000 + "late", 10) == "late"
