import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from ssae.bench.agreement import selection_agreement
from ssae.bench.memory import peak_memory
from ssae.bench.ours import Step, make
from ssae.sae.scores import fast_dtype

HAVE_PEERS = all(importlib.util.find_spec(name) for name in ("sae_lens", "sparsify"))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssae.bench", "step", "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_measures_ours_and_the_peers_and_writes_json():
    done = bench("--shape", "16,256,4,128", "--rounds", "1", "--threads", "1", "--json", "-")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    (shape,) = results["shapes"]
    assert [shape[name] for name in ("d_in", "d_sae", "k", "tokens")] == [16, 256, 4, 128]
    steps = {row["step"]: row for row in shape["steps"]}
    assert steps["x @ W_enc alone, fp32"]["ratio_to_floor"] == 1
    for row in steps.values():
        assert row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["tokens_per_second"] == pytest.approx(128 / (row["ms"] / 1e3))
    assert steps["ssae topk"]["l0"] == steps["ssae topk, TERM"]["l0"] == 4
    assert steps["ssae batchtopk"]["l0"] == pytest.approx(4, abs=0.1)
    for name in ("ssae relu", "ssae gated", "ssae jumprelu"):
        assert 0 < steps[name]["l0"] < 128
    peers = {f"saelens {kind}" for kind in ("topk", "batchtopk", "jumprelu", "standard")}
    for peer in (peers | {"sparsify topk"}) if HAVE_PEERS else ():
        assert {f"{peer}, fp32", f"{peer}, bf16"} <= steps.keys()


@pytest.mark.parametrize("shape", ["16,256,4", "16,a,4,8", "16,256,257,8", "0,1,1,1"])
def test_a_shape_that_is_none_is_refused(shape):
    done = bench("--shape", shape)
    assert done.returncode == 1
    assert shape in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(fast_dtype(torch.device("cpu")) is None, reason="no bfloat16 instructions")
@pytest.mark.slow
def test_the_screen_chooses_the_exact_top_k_on_real_activations():
    found = selection_agreement(torch.device("cpu"))
    assert found["entries"] > 100_000
    assert found["share"] >= 0.999


@pytest.mark.parametrize("screening", ["auto", "exact"])
def test_a_topk_step_needs_no_tensor_of_the_size_of_the_dense_latents(screening):
    x = torch.randn(4096, 32)
    d_sae = 16384
    extra = peak_memory(Step(make("topk", x[:64], d_sae, 8), screening=screening), x)
    assert 0 < extra <= 0.25 * 4 * len(x) * d_sae  # a chunk of scores is half of it


def test_the_memory_of_a_step_is_that_of_its_tensors():
    x = torch.zeros(1000, 1)

    class Known:
        kept: torch.Tensor

        def __call__(self, x: torch.Tensor) -> None:
            self.kept = torch.empty(50_000)
            temporary = torch.empty(200_000)
            del temporary

    assert peak_memory(Known(), x) == pytest.approx(4 * 200_000, abs=4 * 1000)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rounds", "0"), ("--threads", "0"), ("--device", "nothing"), ("--only", "nothing"),
        ("--json", "/nowhere/at/all.json"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_measured(arguments):
    done = bench("--shape", "16,64,4,8", *arguments)
    assert done.returncode == 1
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
