import argparse

import pytest
import torch

from ssae.bench import measures


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    measures.add_arguments(parser)
    small = ("--d-in", "16", "--d-sae", "64", "--k", "4", "--tokens", "3000", "--rounds", "1",
             "--vocab", "200", "--bootstraps", "10", "--memory-tokens", "2100",
             "--memory-d-sae", "100")  # fmt: skip
    return parser.parse_args([*small, "--device", "cpu", *words])


def test_it_shows_what_the_measures_cost_and_keep(capsys):
    measures.run(arguments())
    shown = capsys.readouterr().out
    assert "d_in 16, d_sae 64, k 4, 3000 tokens" in " ".join(shown.split())
    assert all(part in shown for part in ("forward", "updates", "results", "together"))
    assert "8,400 firings of 100 latents" in " ".join(shown.split())


def test_a_firing_keeps_8_bytes_and_its_share_of_a_token():
    kept, _, num = measures.memory(arguments())
    assert num == 2100 * 4
    assert kept == pytest.approx(8 + 12 / 4)


def test_the_text_has_a_tail():
    split, texts = measures.draw(3000, 200, 10, torch.zeros(1))
    assert sum(len(text.ids) for text in texts) == 3000
    assert len(split.tail.ids) > 5
    assert 2 * split.tail.counts.sum() <= 3000


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--tokens", "-1"), ("--k", "101")])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(SystemExit, match=rf"{wrong[0]} must be .*got {wrong[1]}"):
        measures.run(arguments(*wrong))
