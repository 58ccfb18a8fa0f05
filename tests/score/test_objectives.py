"""Objectives against the score of Gaussian data, which is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from n2s_med.noise.correlation import Correlation
from n2s_med.score import ArDae, Dsm, Objective, TotalUnitNoise, annealed

SIGNAL_VARIANCE = 4.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture
def white() -> Tensor:
    return normal(400_000, seed=1)


@pytest.fixture
def y() -> Tensor:
    """Unit-noise data of a Gaussian signal."""
    return (1 + SIGNAL_VARIANCE) ** 0.5 * normal(400_000, seed=2)


def best_slope(objective: Objective, y: Tensor, white: Tensor) -> float:
    """``θ`` of the linear score ``θ v`` with the least loss: the loss is a parabola in ``θ``."""
    losses = [float(objective.loss(lambda v, t=t: t * v, y, white).mean()) for t in (-1.0, 0.0, 1.0)]  # type: ignore[misc]
    bend, slope = (losses[0] + losses[2]) / 2 - losses[1], (losses[2] - losses[0]) / 2
    return -slope / (2 * bend)


@pytest.mark.parametrize("sigma_a", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("kind", [ArDae, Dsm])
def test_minimiser_is_the_score_of_the_perturbed_data(
    kind: Callable[[float], Objective], sigma_a: float, y: Tensor, white: Tensor
) -> None:
    wanted = -1 / (1 + SIGNAL_VARIANCE + sigma_a**2)
    assert best_slope(kind(sigma_a), y, white) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("sigma_a", [0.25, 0.5, 1.0])
def test_minimiser_of_total_unit_noise(sigma_a: float, y: Tensor, white: Tensor) -> None:
    """The score of ``v``: a signal of ``τ²/(1 + s²)`` under unit noise."""
    wanted = -1 / (1 + SIGNAL_VARIANCE / (1 + sigma_a**2))
    assert best_slope(TotalUnitNoise(sigma_a), y, white) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("sigma_a", [0.1, 0.5])
def test_scale_makes_the_posterior_mean(sigma_a: float) -> None:
    """``v + scale R(v)`` is E[x given v], exactly, though the score is that of blurred data."""
    variance = 1 + SIGNAL_VARIANCE + sigma_a**2
    gain = 1 - ArDae(sigma_a).scale / variance
    assert gain == pytest.approx(SIGNAL_VARIANCE / variance)
    assert Dsm(sigma_a).scale == ArDae(sigma_a).scale
    assert TotalUnitNoise(sigma_a).scale == 1


@pytest.mark.parametrize("sigma_a", [0.01, 0.5, 2.0])
def test_dsm_is_ar_dae_times_the_square_of_the_perturbation(sigma_a: float) -> None:
    """Both published forms: values and gradients proportional, voxel by voxel."""
    y, white = normal(50, seed=3), normal(50, seed=4)
    weight = normal(2, seed=5).requires_grad_()

    def score(v: Tensor) -> Tensor:
        return weight[0] * torch.tanh(weight[1] * v)

    losses = [kind(sigma_a).loss(score, y, white) for kind in (Dsm, ArDae)]
    torch.testing.assert_close(losses[0], sigma_a**2 * losses[1], rtol=1e-8, atol=0)
    gradients = [torch.autograd.grad(loss.sum(), weight)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], sigma_a**2 * gradients[1], rtol=1e-8, atol=0)


def test_antithetic_pairs_cancel_noise_of_the_gradient() -> None:
    """At a small perturbation the gradient of one draw is mostly noise; of a pair it is not."""
    y, objective = normal(1000, seed=6), ArDae(0.01)

    def gradient(white: Tensor) -> float:
        slope = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        objective.loss(lambda v: slope * v, y, white).mean().backward()
        assert slope.grad is not None
        return float(slope.grad)

    draws = [normal(1000, seed=seed) for seed in range(20, 60)]
    single = torch.tensor([gradient(w) for w in draws])
    pairs = torch.tensor([(gradient(w) + gradient(-w)) / 2 for w in draws])
    assert float(pairs.std()) < 0.1 * float(single.std())


@pytest.mark.parametrize("objective", [ArDae(0.5), TotalUnitNoise(0.5)], ids=["ArDae", "TotalUnitNoise"])
def test_correlated_perturbation_teaches_the_score_times_the_covariance(objective: Objective) -> None:
    """Of all ``θ(f) v`` per frequency, ``Σ s`` has the least loss, and ``Lᵀ s`` and ``s`` have more."""
    correlation = Correlation.from_kernel(torch.tensor([0.5, 1.0, 0.5]))
    size = 32
    root = correlation._transfer((size,)).double()
    u = torch.fft.irfft(torch.fft.rfft(normal(20_000, size, seed=7)) * root, size)
    y = u + SIGNAL_VARIANCE**0.5 * normal(20_000, size, seed=8)
    white, sigma_a = normal(20_000, size, seed=9), 0.5
    if isinstance(objective, TotalUnitNoise):
        power = SIGNAL_VARIANCE / (1 + sigma_a**2) + root**2
    else:
        power = SIGNAL_VARIANCE + (1 + sigma_a**2) * root**2

    def loss(transfer: Tensor) -> float:
        def g(v: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(v) * transfer, size)

        return float(objective.loss(g, y, white, correlation.color).mean())

    exact = -(root**2) / power
    for worse in (0.8 * exact, 1.2 * exact, -root / power, -1 / power, exact.flip(0), exact - 0.02):
        assert loss(exact) < loss(worse)


def test_annealed_is_geometric() -> None:
    assert annealed(0.1, 0.001, 0.0) == pytest.approx(0.1)
    assert annealed(0.1, 0.001, 0.5) == pytest.approx(0.01)
    assert annealed(0.1, 0.001, 1.0) == pytest.approx(0.001)
    assert annealed(0.1, 0.001, -1.0) == pytest.approx(0.1)
    assert annealed(0.1, 0.001, 7.0) == pytest.approx(0.001)
