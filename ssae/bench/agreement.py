"""How often searching in bfloat16 finds the exact top k, on real activations."""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssae.activation.rows import cut
from ssae.bench.ours import Step, make
from ssae.language_model.frozen import LanguageModel
from ssae.sae import scores, screen

MODULES = (
    "argparse", "collections", "datetime", "decimal", "fractions", "json", "logging", "pathlib",
    "random", "re", "statistics", "tarfile", "unittest", "zipfile",
)  # fmt: skip
"""Whose documentation is the text: every Python has it."""
HOOKPOINT, CONTEXT_LENGTH = "gpt_neox.layers.2", 128
D_SAE, K, NUM_STEPS, BATCH = 8192, 32, 60, 1024


def selection_agreement(device: torch.device) -> dict[str, Any]:
    """Return {share, entries}: of the entries of the exact top k, how many the screen chose too.

    The SAE is trained for a moment first: directions that have adapted to the activations score
    closer to each other than random ones.
    """
    x = activations(device)
    torch.manual_seed(0)
    step = Step(make("topk", x, D_SAE, K))
    with torch.no_grad():
        step.sae.b_dec.copy_(x.mean(0))
    for group in step.optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(NUM_STEPS):
        step(x[torch.randint(len(x), (BATCH,), device=device)])
    sae = step.sae
    weights = (sae.encoder_input(x), sae.W_enc_T, sae.b_enc, K)
    exact, _ = screen.top_k(*weights, None)
    screened, _ = screen.top_k(*weights, scores.fast_dtype(device))
    both = torch.cat([_pairs(exact), _pairs(screened)]).unique(return_counts=True)[1]
    return {"share": float((both == 2).sum() / (len(x) * K)), "entries": len(x) * K}


def activations(device: torch.device) -> Tensor:
    """Return activations (n, d_in) of the bundled model, scaled to mean norm sqrt(d_in)."""
    folder = Path(__file__).parent.parent / "models" / "docstrings_lm"
    lm = LanguageModel(str(folder), device=str(device))
    bos = lm.tokenizer.bos_token_id
    encoded = lm.tokenizer(list(_texts()), add_special_tokens=False, verbose=False)["input_ids"]
    rows = cut(enumerate(encoded), CONTEXT_LENGTH, bos, "row", "packed")
    full = torch.tensor([ids for ids, _ in rows if len(ids) == CONTEXT_LENGTH])
    found = []
    for ids in full.split(64):
        hidden = lm.capture(ids, HOOKPOINT)
        found.append(hidden[(ids != bos).to(hidden.device)].float())
    x = torch.cat(found)
    return x * x.shape[1] ** 0.5 / x.norm(dim=1).mean()


def _texts() -> Iterator[str]:
    for name in MODULES:
        module = importlib.import_module(name)
        for _, member in sorted(vars(module).items()):
            if inspect.isclass(member) or inspect.isroutine(member):
                text = inspect.getdoc(member)
                if text and len(text) > 100:
                    yield text


def _pairs(active: Any) -> Tensor:
    return active.tokens.long() * active.d_sae + active.indices
