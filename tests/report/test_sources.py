import numpy as np

from ssae.report.sources import breakdown


def test_thousands_of_dotted_sources_are_rolled_up_and_sum_to_the_whole():
    draw = np.random.default_rng(0)
    pool = [f"{'abcde'[i % 5]}.m{draw.integers(30)}.f{i}" for i in range(6000)]
    chosen = [name for name in pool if name[0] in "ab"][:900]
    found = breakdown(chosen, pool)
    assert (found.depth, found.num_distinct) == (1, 900)
    assert [row[:3] for row in found.rows] == [
        ("a", 450, 1200),
        ("b", 450, 1200),
        ("all other sources", 0, 3600),
    ]


def test_few_sources_keep_their_names_and_many_without_dots_become_others():
    few = breakdown(["a.b.c", "a.b.d", "a.b.c"], ["a.b.c"] * 2 + ["a.b.d"])
    assert [row[:3] for row in few.rows] == [("a.b.c", 2, 2), ("a.b.d", 1, 1)]
    assert few.depth is None
    many = breakdown([f"s{i:03}" for i in range(100)], [f"s{i:03}" for i in range(200)])
    assert many.depth is None
    assert len(many.rows) == 13
    assert many.rows[-1][1:] == (88, 188, True)
