import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssae.metric.frequency import frequency_of
from ssae.objective.base import Losses
from ssae.objective.cvar import CVaR
from ssae.objective.group_dro import GroupDRO
from ssae.objective.groups import LEVELS
from ssae.objective.term import TERM

from .conftest import NUM_TYPES, draw_batch, text_of

GROUPED = [level for level in LEVELS if level != "token"]


def keys_of(losses: Losses, level: str, text) -> torch.Tensor:
    assert losses.tokens is not None
    found = {
        "token": torch.arange(len(losses.errors)),
        "document": losses.tokens.document_ids,
        "token_type": losses.tokens.token_ids,
    }.get(level)
    if found is None:
        found = frequency_of(text.token_counts).bands[losses.tokens.token_ids]
    return found


def definition(values: torch.Tensor, losses: Losses, level: str, balance: float, tilt: float, text):
    """(1/tilt) log sum_g mass_g exp(tilt mean of g), group by group."""
    keys = keys_of(losses, level, text)
    assert losses.tokens is not None
    total, parts = 0.0, []
    for key in keys.unique():
        own = (keys == key).nonzero()[:, 0]
        size = len(own)
        of_type = size
        if level == "token":
            of_type = int((losses.tokens.token_ids == losses.tokens.token_ids[own[0]]).sum())
        mass = size * of_type**-balance
        total += mass
        parts.append((mass, values[own].mean()))
    if tilt == 0:
        return sum(mass / total * mean for mass, mean in parts)
    return torch.log(sum(mass / total * torch.exp(tilt * mean) for mass, mean in parts)) / tilt


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tilt", [-4.0, 0.0, 0.3, 6.0])
def test_term_has_the_value_and_the_gradient_of_the_definition(
    apply, batch, text, level, balance, tilt
):
    term = TERM(tilt=tilt, level=level, balance=balance, weighed="recon")
    found = apply(term, batch, rows=text)
    errors = batch.errors.clone().requires_grad_()
    expected = definition(errors, batch, level, balance, tilt, text)
    (gradient,) = torch.autograd.grad(expected, errors)
    torch.testing.assert_close(found.logged["risk"], expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-9, atol=1e-14)
    assert found.loss.item() == pytest.approx(
        expected.item() + batch.penalties.mean().item(), rel=1e-9
    )


def test_what_is_weighed_is_the_total_or_the_reconstruction_alone(apply, batch):
    total = apply(TERM(tilt=3.0), batch)
    weights = torch.softmax(3.0 * (batch.errors + batch.penalties), 0)
    torch.testing.assert_close(total.gradient, weights)
    torch.testing.assert_close(total.penalty_gradient, weights)
    recon = apply(TERM(tilt=3.0, weighed="recon"), batch)
    torch.testing.assert_close(recon.gradient, torch.softmax(3.0 * batch.errors, 0))
    torch.testing.assert_close(recon.penalty_gradient, torch.full_like(weights, 1 / len(weights)))


@pytest.mark.parametrize(
    "make", [functools.partial(TERM, tilt=4.0), functools.partial(CVaR, share=0.3)]
)
@pytest.mark.parametrize("level", GROUPED)
def test_groups_of_one_token_are_the_level_of_tokens(apply, make, level):
    num = NUM_TYPES // 2
    batch = draw_batch(num)
    assert batch.tokens is not None
    alone = torch.arange(num).int()
    text = text_of(batch)
    if level == "frequency_band":  # one type in each decade
        text.token_counts = 10 ** torch.arange(NUM_TYPES)
        alone, num = torch.tensor([0, 5, 6, 7, 8, 11]).int(), 6
        assert len(frequency_of(text.token_counts).bands[alone.long()].unique()) < 7
    tokens = batch.tokens._replace(token_ids=alone, document_ids=alone)
    batch = batch._replace(tokens=tokens)
    if level == "frequency_band":
        bands = frequency_of(text.token_counts).bands[alone.long()]
        first = [int((bands == band).nonzero()[0]) for band in bands.unique()]
        batch = Losses(
            batch.errors[first], None, tokens._replace(
                activations=tokens.activations[first], token_ids=alone[first],
                document_ids=alone[first], positions=tokens.positions[first],
            )
        )  # fmt: skip
    grouped = apply(make(level=level), batch, rows=text)
    plain = apply(make(level="token"), batch, rows=text)
    torch.testing.assert_close(grouped.gradient, plain.gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(grouped.loss, plain.loss, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("tilt", [-1e9, -3.0, 0.0, 2.0, 1e9])
def test_one_group_of_all_tokens_is_the_mean_for_every_tilt(apply, batch, tilt):
    one = torch.zeros(len(batch.errors)).int()
    batch = batch._replace(tokens=batch.tokens._replace(document_ids=one))
    found = apply(TERM(tilt=tilt, level="document"), batch)
    mean = batch.totals.mean().item()
    assert found.loss.item() == pytest.approx(mean, rel=1e-9)
    torch.testing.assert_close(found.gradient, torch.full_like(found.gradient, 1 / len(one)))


@pytest.mark.parametrize("level", GROUPED)
def test_a_tilt_of_0_is_the_mean_over_tokens_or_over_groups(apply, batch, text, level):
    losses = batch._replace(penalties=None)
    keys = keys_of(batch, level, text)
    means = torch.stack([batch.errors[keys == key].mean() for key in keys.unique()])
    over_tokens = apply(TERM(tilt=0, level=level), losses, rows=text)
    over_groups = apply(TERM(tilt=0, level=level, balance=1), losses, rows=text)
    assert over_tokens.loss.item() == pytest.approx(batch.errors.mean().item(), rel=1e-12)
    assert over_groups.loss.item() == pytest.approx(means.mean().item(), rel=1e-12)


@pytest.mark.parametrize("level", GROUPED)
@pytest.mark.parametrize(("tilt", "pick"), [(1e9, torch.max), (-1e9, torch.min)])
def test_extreme_tilts_are_the_extreme_group(apply, batch, text, level, tilt, pick):
    losses = batch._replace(penalties=None)
    keys = keys_of(batch, level, text)
    means = torch.stack([batch.errors[keys == key].mean() for key in keys.unique()])
    found = apply(TERM(tilt=tilt, level=level, balance=0.5), losses, rows=text)
    assert found.loss.item() == pytest.approx(pick(means).item(), rel=1e-7)
    assert found.gradient.isfinite().all()
    assert found.gradient.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("level", ["token", "document", "token_type"])
def test_groups_are_counted_in_the_batch_not_in_the_text(apply, batch, level):
    objective = TERM(tilt=1.0, level=level, balance=1)
    found = apply(objective, batch).gradient  # without any text
    keys = keys_of(batch, "token_type" if level == "token" else level, None)
    weights = [float(found[keys == key].sum()) for key in keys.unique()]
    if level == "token":  # every type has the same share before the tilt
        flat = apply(TERM(tilt=0, level=level, balance=1), batch).gradient
        weights = [float(flat[keys == key].sum()) for key in keys.unique()]
        assert weights == pytest.approx([1 / len(weights)] * len(weights))
    else:
        means = torch.stack([batch.totals[keys == key].mean() for key in keys.unique()])
        assert weights == pytest.approx(means.softmax(0).tolist())


@pytest.mark.parametrize("level", LEVELS)
def test_the_effective_sample_size_and_the_largest_weight_are_those_of_the_tokens(
    apply, batch, text, level
):
    objective = TERM(tilt=2.0, level=level, balance=0.5)
    found = apply(objective, batch, rows=text)
    weights = found.gradient
    expected = weights.sum().square() / weights.square().sum() / len(weights)
    assert found.logged["effective_sample_size"].item() == pytest.approx(expected.item(), rel=1e-9)
    share = (weights.max() / weights.sum()).item()
    assert found.logged["largest_weight"].item() == pytest.approx(share, rel=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 4)), min_size=1, max_size=20),
    st.floats(-20, 20), st.floats(0, 1), st.floats(-3, 3), st.sampled_from(["token_type", "token"]),
)  # fmt: skip
def test_a_shift_of_all_losses_shifts_the_risk_and_leaves_the_weights(
    pairs, tilt, balance, shift, level
):
    errors = torch.tensor([error for error, _ in pairs], dtype=torch.float64)
    batch = draw_batch(len(pairs))._replace(errors=errors, penalties=None)
    ids = torch.tensor([key for _, key in pairs]).int()
    batch = batch._replace(tokens=batch.tokens._replace(token_ids=ids))
    objective = TERM(tilt=tilt, level=level, balance=balance)
    memory = objective.memory(text_of(batch))
    found, shifted = (objective(batch._replace(errors=errors + by), memory)[1] for by in (0, shift))
    assert shifted["risk"].item() == pytest.approx(found["risk"].item() + shift, abs=1e-7)
    for name in ("effective_sample_size", "largest_weight"):
        assert shifted[name].item() == pytest.approx(found[name].item(), rel=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 1))
def test_the_risk_grows_with_the_tilt_between_the_extreme_groups(seed, a, b, balance):
    batch = draw_batch(30, seed)._replace(penalties=None)
    text = text_of(batch)
    risks = []
    for tilt in (-1e9, *sorted((a, b)), 1e9):
        objective = TERM(tilt=tilt, level="token_type", balance=balance)
        risks.append(objective(batch, objective.memory(text))[1]["risk"].item())
    assert all(low <= high + 1e-6 for low, high in zip(risks, risks[1:], strict=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TERM(tilt=1, level="word"), r"level must be one of token, .*'word'.*level=token"),
        (lambda: TERM(tilt=1, balance=1.5), r"balance must lie in \[0, 1\], got 1.5; .*balance=0"),
        (lambda: TERM(tilt=1, weighed="l1"), "weighed must be one of total, recon, got 'l1'"),
        (lambda: TERM(tilt=1, unit="nats"), "unit must be one of variance, raw"),
        (lambda: TERM(tilt=1, schedule="step"), "schedule must be one of constant, linear, cosine"),
        (lambda: TERM(tilt=1, rho=0), r"rho must lie in \(0, 1\], got 0; set objective.rho=1"),
        (lambda: TERM(tilt=1, rise_share=0), r"rise_share must lie in \(0, 1\]"),
        (
            lambda: TERM(tilt=1, rho=0.5, schedule="linear"),
            "rho=0.5 needs objective.schedule=constant",
        ),
        (lambda: TERM(tilt="5"), "objective.tilt must be a number, got '5'"),
        (lambda: CVaR(share=0), r"share must lie in \(0, 1\], got 0"),
        (lambda: CVaR(share=math.nan), r"share must lie in \(0, 1\], got nan"),
        (lambda: GroupDRO(step_size=0.1, level="token"), "level=frequency_band"),
        (lambda: GroupDRO(step_size=-1, level="document"), "step_size must be finite and not neg"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_what_to_type(make, message):
    with pytest.raises(ValueError, match=message):
        make()
