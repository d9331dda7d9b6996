import argparse

import pytest
import torch

from ssae.bench import tracin


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tracin.add_arguments(parser)
    small = ("--d-in", "16", "--d-sae", "256", "--k", "4", "--tokens", "128", "--rounds", "1")
    return parser.parse_args([*small, "--device", "cpu", *words])


def test_it_measures_every_architecture(capsys):
    tracin.run(arguments())
    shown = capsys.readouterr().out
    assert "d_in 16, d_sae 256, k 4, 128 tokens" in shown
    assert all(architecture in shown for architecture in tracin.ARCHITECTURES)


@pytest.mark.parametrize("architecture", tracin.ARCHITECTURES)
def test_as_many_latents_are_active_as_asked_for(architecture):
    x = torch.randn(512, 16)
    with torch.no_grad():
        out = tracin.scoring(architecture, x, 256, 8)(x)
    assert out.latents.num_active().float().mean() == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--tokens", "-1"), ("--k", "257")])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(SystemExit, match=rf"{wrong[0]} must be .*got {wrong[1]}"):
        tracin.run(arguments(*wrong))
