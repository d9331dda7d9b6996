import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssae.probe.linear import GradientSteps, Linear, Logistic, Probe


def data(n: int = 150, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Coordinates of different size and offset, and classes that some of them tell, not quite."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    x = generator.normal(size=(n, d)) + np.outer(y, [1.0, -0.7] + [0.0] * (d - 2))
    x = x * 10.0 ** np.linspace(-2, 2, d) + np.linspace(-5, 5, d)
    return torch.tensor(x, dtype=torch.float32), y


def adamw(x, y, seed, lr, batch_size, num_epochs):
    """Decoupled weight decay (Loshchilov & Hutter 2019), and the gradient by hand."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(x.shape[1], 1)
    theta = torch.cat([layer.weight.detach()[0], layer.bias.detach()]).double()
    x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    y = torch.from_numpy(y).double()
    m, v, step = torch.zeros_like(theta), torch.zeros_like(theta), 0
    for _ in range(num_epochs):
        for start in range(0, len(x), batch_size):
            own, target = x[start : start + batch_size], y[start : start + batch_size]
            gradient = own.T @ (1 / (1 + (-own @ theta).exp()) - target) / len(own)
            step += 1
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            theta = theta * (1 - lr * 0.01)
            theta = theta - lr * (m / (1 - 0.9**step)) / (
                (v / (1 - 0.999**step)).sqrt() + 1e-8
            )  # fmt: skip
    return theta[:-1], theta[-1]


@pytest.mark.parametrize(("batch_size", "num_epochs"), [(128, 1), (32, 1), (32, 3), (1000, 2)])
def test_the_published_probe_takes_the_steps_of_adamw(batch_size: int, num_epochs: int):
    x, y = data()
    for seed in (0, 5):
        probe = GradientSteps(
            lr=1e-2, batch_size=batch_size, num_epochs=num_epochs, weight_decay=0.01
        )
        found = probe.fit(x, y, seed)
        weight, bias = adamw(x, y, seed, 1e-2, batch_size, num_epochs)
        torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-5)
        assert found.bias == pytest.approx(float(bias), rel=1e-4, abs=1e-5)


def test_the_published_probe_reads_documents_in_the_given_order():
    x, y = data()
    probe = GradientSteps(lr=1e-2, batch_size=32, num_epochs=1, weight_decay=0.01)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    there, back = probe.fit(x, y, 0), probe.fit(x[order], y[order.numpy()], 0)
    assert not torch.allclose(there.weight, back.weight, rtol=1e-4)


def test_the_seed_decides_the_published_probe_and_nothing_else_is_drawn():
    x, y = data()
    probe = GradientSteps(lr=1e-2, batch_size=64, num_epochs=1, weight_decay=0.01)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = probe.fit(x, y, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(probe.fit(x, y, 1).weight, first.weight)
    assert not torch.equal(probe.fit(x, y, 2).weight, first.weight)


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_logistic_margins_are_those_of_scikit_learn_on_standardised_coordinates(C: float):
    x, y = data()
    new, _ = data(seed=1)
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    expected = make_pipeline(StandardScaler(), model).fit(x.double().numpy(), y)
    found = Logistic(C=C).fit(x, y, 0)
    margins = expected.decision_function(new.double().numpy())
    np.testing.assert_allclose(found.margins(new).numpy(), margins, rtol=1e-3, atol=1e-3)
    # A margin may lie within the tolerance of 0.
    sure = np.abs(margins) > 1e-2
    assert sure.sum() > 140
    predicted = expected.predict(new.double().numpy())
    np.testing.assert_array_equal(found.predict(new)[sure], predicted[sure])


def test_a_constant_coordinate_tells_nothing():
    x, y = data()
    constant = torch.full((len(x), 2), 0.1)
    constant[:, 1] = 1e4
    wide = torch.cat([constant, x], dim=1)
    found, expected = Logistic(C=1.0).fit(wide, y, 0), Logistic(C=1.0).fit(x, y, 0)
    assert found.weight[:2].tolist() == [0, 0]
    torch.testing.assert_close(found.margins(wide), expected.margins(x), rtol=1e-3, atol=1e-3)


def test_the_logistic_probe_does_not_depend_on_scale_offset_or_seed():
    x, y = data()
    found = Logistic(C=1.0).fit(x, y, 0)
    moved = x.double() * torch.tensor([2.0, 0.1, 3, 1, 5, 7]) - 20
    again = Logistic(C=1.0).fit(moved, y, 1)
    torch.testing.assert_close(again.margins(moved), found.margins(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(Logistic(C=1.0).fit(x, y, 9).weight, found.weight)


def test_a_smaller_c_is_a_larger_penalty():
    x, y = data()
    scale = x.double().std(0, correction=0)
    sizes = [float((Logistic(C=C).fit(x, y, 0).weight * scale).norm()) for C in (1e-3, 0.1, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 5


def test_margins_are_linear_and_positive_for_class_one():
    probe = Linear(torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]])
    assert probe.margins(x).tolist() == [2.5, -0.5, 0.0]
    assert probe.predict(x).tolist() == [1, 0, 0]
    separable = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    y = np.array([0, 0, 1, 1])
    many = GradientSteps(lr=0.1, batch_size=4, num_epochs=100, weight_decay=0.01)
    for settings in (Logistic(C=1.0), many):
        assert settings.fit(separable, y, 0).predict(separable).tolist() == y.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logistic(C=0.0), r"shift\.probe\.C must be positive, got 0\.0; set shift\.probe"),
        (lambda: Logistic(C=math.nan), r"shift\.probe\.C must be positive, got nan; set shift\.p"),
        (
            lambda: Logistic(C="1"),
            r"shift\.probe\.C must be a number, got '1'; set shift\.probe\.C",
        ),
        (
            lambda: GradientSteps(lr=0.0, batch_size=8, num_epochs=1, weight_decay=0.01),
            r"shift\.probe\.lr must be positive, got 0\.0; set shift\.probe\.lr=1e-2",
        ),
        (
            lambda: GradientSteps(lr=0.1, batch_size=0, num_epochs=1, weight_decay=0.01),
            r"shift\.probe\.batch_size must be at least 1, got 0; set shift\.probe\.batch_size=128",
        ),
        (
            lambda: GradientSteps(lr=0.1, batch_size=8, num_epochs=0, weight_decay=0.01),
            r"shift\.probe\.num_epochs must be at least 1, got 0; set shift\.probe\.num_epochs=1",
        ),
    ],
)
def test_wrong_settings_are_refused_with_the_override(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_probe_without_a_variant_does_not_train():
    with pytest.raises(NotImplementedError):
        Probe().fit(*data(), 0)
