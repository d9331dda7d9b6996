import dataclasses
import types

import pytest
import torch
import transformers

from ssae.activation.rows import Rows
from ssae.evaluate import evaluate
from ssae.metric import formulas
from ssae.metric.frequency import BANDS, frequency_of, rank_bins
from ssae.metric.measures import Measured
from ssae.metric.splice import measure_split
from ssae.metric.sums import QUANTITIES
from ssae.run import run
from ssae.sae.relu import ReLUSAE
from ssae.sae.topk import TopKSAE

D_IN, LENGTH = 16, 24
TEXTS = [
    "the mean of a sample",
    "a normal distribution has mean and variance: array_like, optional. " * 4,
    "x",
    "file string path list of the module " * 3,
    "größe 0.5",
]


@dataclasses.dataclass
class Token:
    """One text token, found by transformers alone."""

    id: int
    document: int
    x: torch.Tensor
    previous: int | None
    """The token before it in its row."""
    ce: dict[str, float] | None
    """None where the token is not predicted from its own document."""


def identity_sae() -> ReLUSAE:
    """recon = relu(x) - relu(-x) = x."""
    sae = ReLUSAE(D_IN, 2 * D_IN, l1_coefficient=0.0, auxk_coefficient=0.0, k_aux=1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(D_IN), -torch.eye(D_IN)], 1))
        sae.W_dec.copy_(sae.W_enc.T)
    return sae


def topk_sae() -> TopKSAE:
    torch.manual_seed(3)
    return TopKSAE(D_IN, 40, k=5, auxk_coefficient=0.0, k_aux=1)


@pytest.fixture(
    params=[("neox", "gpt_neox.layers.1"), ("llama", "model.layers.0"),
            ("mistral", "model.layers.0")],
    ids=lambda param: param[0],
)  # fmt: skip
def model(request):
    """A language model, a hookpoint, and the same model as transformers loads it."""
    name, hookpoint = request.param
    lm = request.getfixturevalue(name)
    plain = transformers.AutoModelForCausalLM.from_pretrained(lm.name).eval()
    return lm, hookpoint, plain


@pytest.fixture(params=["packed", "documents"])
def rows_of(request, make_rows):
    """Return a function that cuts the texts into rows."""

    def make(lm, max_tokens=10_000, bos="row") -> Rows:
        return make_rows(lm, TEXTS, LENGTH, bos, request.param, max_tokens)

    return make


@torch.no_grad()
def reference(model, rows, sae) -> list[Token]:
    """Measure row by row and token by token, with hooks of our own."""
    lm, hookpoint, plain = model
    special = set(lm.tokenizer.all_special_ids)
    tokens = []
    for index in range(rows.num_rows):
        batch = rows.batch(torch.tensor([index]))
        ids, documents = batch.input_ids[0].tolist(), batch.document_ids[0].tolist()
        text = torch.tensor([i not in special for i in ids])
        row = torch.tensor([ids])
        kept: list[torch.Tensor] = []

        def run(change, row=row):
            def hook(module, args, output):
                x = output if isinstance(output, torch.Tensor) else output[0]
                new = change(x[0].clone())[None]
                return new if isinstance(output, torch.Tensor) else (new, *output[1:])

            handle = plain.get_submodule(hookpoint).register_forward_hook(hook)
            logits = plain(input_ids=row).logits[0]
            handle.remove()
            return logits.log_softmax(-1)

        def keep(x, kept=kept):
            kept.append(x)
            return x

        def replace(x, text=text):
            x[text] = sae(x[text]).recon
            return x

        def zero(x, text=text):
            x[text] = 0
            return x

        log_probs = {
            "ce_clean": run(keep),
            "ce_spliced": run(replace),
            "ce_zero": run(zero),
        }
        for i, (token, document) in enumerate(zip(ids, documents, strict=True)):
            if token in special:
                continue
            ce = None
            if i and documents[i - 1] == document:
                ce = {name: -float(log_p[i - 1, token]) for name, log_p in log_probs.items()}
            tokens.append(Token(token, document, kept[0][i], ids[i - 1] if i else None, ce))
    return tokens


def measure(model, rows, saes, batch_tokens=20 * LENGTH) -> dict[str, Measured]:
    lm, hookpoint, _ = model
    study = types.SimpleNamespace(
        language_model=lm, hookpoint=hookpoint, evaluation_batch_tokens=batch_tokens,
        num_bootstraps=20, seed=0,
    )  # fmt: skip
    x = torch.stack([token.x for token in reference(model, rows, identity_sae())])
    mean = x.double().mean(0)
    return measure_split(study, saes, rows, mean, frequency(lm), name="test")  # pyright: ignore


def frequency(lm):
    """Counts that put the token types into several bands."""
    counts = torch.arange(lm.vocab_size) ** 3
    counts[::7] = 0
    return frequency_of(counts)


@pytest.mark.parametrize("bos", ["row", "none"])
@pytest.mark.parametrize("max_tokens", [10_000, 37])
def test_every_sum_equals_the_one_over_tokens_measured_with_transformers_alone(
    model, rows_of, max_tokens, bos
):
    lm = model[0]
    rows = rows_of(lm, max_tokens, bos)
    sae = topk_sae()
    found = measure(model, rows, {"sae": sae})["sae"]
    tokens = reference(model, rows, sae)
    x = torch.stack([token.x for token in tokens])
    with torch.no_grad():
        latents = sae.encode(x)  # dense: what is measured is sparse
        recon = sae.decode(latents)
    squares = {
        "residual_sq": (x - recon).double().square().sum(1),
        "deviation_sq": (x.double() - x.double().mean(0)).square().sum(1),
        "active": (latents > 0).sum(1).double(),
        "tokens": torch.ones(len(x)).double(),
    }
    bands = frequency(lm).bands
    expected = {name: torch.zeros(len(TEXTS), len(BANDS)).double() for name in QUANTITIES}
    for index, token in enumerate(tokens):
        cell = (token.document, int(bands[token.id]))
        for name, values in squares.items():
            expected[name][cell] += values[index]
        if token.ce is not None:
            for name, value in (token.ce | {"predictions": 1.0}).items():
                expected[name][cell] += value
                if f"{name}_current" in expected:
                    assert token.previous is not None
                    at = (token.document, int(bands[token.previous]))
                    expected[f"{name}_current"][at] += value
            if token.previous not in lm.tokenizer.all_special_ids:
                for name, values in squares.items():
                    expected[f"{name}_predicted"][cell] += values[index - 1]
    assert found.sums.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(found.sums[name]), values, rtol=1e-4, atol=1e-4, msg=name
        )
    assert found.num_tokens == len(tokens) > 0
    assert (expected["tokens"].sum(0) > 0).sum() > 2  # several bands took part
    assert found.fires.tolist() == (latents > 0).sum(0).tolist()


def test_errors_by_rank_equal_a_loop(model, rows_of):
    lm = model[0]
    rows = rows_of(lm)
    sae = topk_sae()
    found = measure(model, rows, {"sae": sae})["sae"]
    tokens = reference(model, rows, sae)
    x = torch.stack([token.x for token in tokens]).double()
    with torch.no_grad():
        errors = (x - sae(x.float()).recon).square().sum(1)
    variance = (x - x.mean(0)).square().sum(1).mean()
    edges = rank_bins(lm.vocab_size).tolist()
    ranks = frequency(lm).ranks
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = [
            float(error / variance)
            for token, error in zip(tokens, errors, strict=True)
            if low <= ranks[token.id] < high
        ]
        assert found.rank_errors.counts[index] == len(inside)
        assert found.rank_errors.sums[index].item() == pytest.approx(sum(inside), rel=1e-4)
        assert found.rank_errors.maxima[index].item() == pytest.approx(
            max(inside, default=0), rel=1e-4
        )


def test_the_clean_cross_entropy_is_the_loss_of_the_model(model, make_rows):
    lm, _, plain = model
    text = TEXTS[1]
    ids = [lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = torch.tensor([ids[:LENGTH]])
    with torch.no_grad():
        expected = float(plain(input_ids=ids, labels=ids).loss)
    rows = make_rows(lm, [text], LENGTH, max_tokens=LENGTH - 1)
    found = measure(model, rows, {"sae": identity_sae()}, batch_tokens=1)["sae"]
    assert found.sums["predictions"].sum() == ids.shape[1] - 1
    sums = {name: values.sum() for name, values in found.sums.items()}
    assert formulas.ce_clean(sums) == pytest.approx(expected, rel=1e-5)


def test_an_sae_that_is_the_identity_costs_nothing(model, rows_of):
    found = measure(model, rows_of(model[0]), {"sae": identity_sae()})["sae"]
    sums = {name: values.sum() for name, values in found.sums.items()}
    assert formulas.fvu(sums) < 1e-12
    assert formulas.delta_ce(sums) == pytest.approx(0, abs=1e-5)
    assert formulas.ce_recovered(sums) == pytest.approx(1, abs=1e-3)
    assert formulas.l0(sums) == D_IN
    assert abs(formulas.ce_zero(sums) - formulas.ce_clean(sums)) > 0.01  # ablation does something


def test_saes_measured_together_have_the_sums_they_have_alone(model, rows_of):
    rows = rows_of(model[0])
    one = {"topk": topk_sae()}  # row by row: more SAEs leave room for fewer rows in a batch
    alone = measure(model, rows, one, batch_tokens=1)["topk"]
    together = measure(model, rows, {"identity": identity_sae(), **one}, batch_tokens=1)["topk"]
    for name, values in alone.sums.items():
        torch.testing.assert_close(values, together.sums[name], rtol=0, atol=0)


def test_the_batch_size_changes_nothing(model, rows_of):
    rows = rows_of(model[0])
    small = measure(model, rows, {"topk": topk_sae()}, batch_tokens=1)["topk"]
    large = measure(model, rows, {"topk": topk_sae()}, batch_tokens=1000)["topk"]
    for name, values in small.sums.items():
        torch.testing.assert_close(
            torch.from_numpy(values), torch.from_numpy(large.sums[name]), rtol=1e-4, atol=1e-4
        )


def test_an_encoder_is_refused_before_anything_is_made(make_study, bert, tmp_path):
    study = make_study(tmp_path, language_model=bert, hookpoint="encoder.layer.1")
    for verb in (evaluate, run):
        with pytest.raises(ValueError, match="needs a causal language model"):
            verb(study)
    assert not study.artifacts.exists()
