"""Clean-free figures against errors and divergences that are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson, Tweedie
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score.stein import response, risk_terms, step_terms

SHAPE = (40, 1, 48, 48)
WHITE = Correlation.white(2)
COLORED = Correlation.from_kernel(torch.tensor([0.3, 1.0, 0.3])[:, None] * torch.tensor([0.5, 1.0, 0.5]))

Function = Callable[[Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=seeded(seed))


def shrink(keep: float, about: float = 0.0) -> Function:
    """``g`` whose ``u + g(u)`` is ``keep u + (1 - keep) about``."""
    return lambda u: (keep - 1) * (u - about)


def test_response_of_a_parabola_is_its_slope() -> None:
    at, along = normal(1), normal(2)
    torch.testing.assert_close(response(torch.square, at, along), 2 * at * along, rtol=1e-3, atol=1e-3)


def test_terms_of_a_linear_estimator() -> None:
    u, white = normal(1), normal(2)
    square, trace = step_terms(shrink(0.3), u, WHITE, white)
    torch.testing.assert_close(square, 0.49 * u**2)
    torch.testing.assert_close(trace, -0.7 * white**2, rtol=1e-3, atol=1e-3)


def test_terms_of_a_linear_estimator_under_correlation() -> None:
    """The probes' mean is ``tr(Σ ∂h/∂u)``; for ``h = -c u`` it is ``-c`` per voxel, as Σ has a unit diagonal."""
    u, white = normal(1), normal(2)
    square, trace = step_terms(shrink(0.3), u, COLORED, white)
    torch.testing.assert_close(square, 0.49 * u**2, rtol=1e-3, atol=1e-3)
    assert float(trace.mean()) == pytest.approx(-0.7, rel=0.05)


@pytest.mark.parametrize("correlation", [WHITE, COLORED], ids=["white", "correlated"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_step_length_undoes_a_wrong_scale(correlation: Correlation, scale: float) -> None:
    """For a Gaussian signal the exact ``h = Σ s`` asks for a step of 1; ``scale g``, for its inverse."""
    root = correlation._transfer(SHAPE[-2:])
    u = 1.5 * normal(1) + correlation.color(normal(2))

    def g(v: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(v, dim=(-2, -1)) * -(root**2) / (1.5**2 + root**2)
        return scale * torch.fft.irfftn(spectrum, s=SHAPE[-2:], dim=(-2, -1))

    square, trace = step_terms(g, u, correlation, normal(3))
    assert float(-trace.mean() / square.mean()) == pytest.approx(1 / scale, rel=0.02)


def risk_of(g: Function, y: Tensor, noise: ScanNoise) -> float:
    """The estimated error in units of the noise variance."""
    risk, variance = risk_terms(g, noise.law.to_unit(y), noise, normal(3))
    assert torch.isfinite(risk).all()
    return float(risk.mean() / variance.mean())


def error_of(g: Function, x: Tensor, y: Tensor, noise: ScanNoise) -> float:
    """The true error in units of the noise variance, in the scan's own units."""
    law = noise.law
    x_hat = law.mean_from_unit(y, g(law.to_unit(y)))
    return float((x_hat - x).square().mean() / noise.variance(x).mean())


def unit_error_of(g: Function, x: Tensor, y: Tensor, noise: ScanNoise) -> float:
    """The true error in the unit-noise domain, where the clean value is ``E[T(y) given x]``."""
    law = noise.law
    clean = torch.stack([law.to_unit(law.sample(x, seeded(seed))) for seed in range(40, 140)]).mean(0)
    u = law.to_unit(y)
    return float((u + g(u) - clean).square().mean())


@pytest.mark.parametrize("correlation", [WHITE, COLORED], ids=["white", "correlated"])
@pytest.mark.parametrize("keep", [0.2, 0.7, 1.0])
def test_gaussian_risk_is_the_error(correlation: Correlation, keep: float) -> None:
    noise = ScanNoise(Gaussian(2.0), correlation)
    x = 3.0 * normal(1) + 10
    y = x + 2.0 * correlation.color(normal(2))
    g = shrink(keep, about=5.0)
    assert risk_of(g, y, noise) == pytest.approx(error_of(g, x, y, noise), abs=0.06)


def test_risk_of_a_map_of_levels_is_the_error() -> None:
    """Where the level varies, the error counts in units of the local noise variance."""
    sigma = torch.linspace(1, 4, 48).expand(48, 48)
    noise = ScanNoise(Gaussian(sigma), WHITE)
    x = 3.0 * normal(1)
    y = noise.law.sample(x, seeded(2))
    relative = float(((0.6 * y - x) / sigma).square().mean())
    assert risk_of(shrink(0.6), y, noise) == pytest.approx(relative, abs=0.04)


KEEPS = [0.3, 0.7, 1.0]


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("law", "level"), [(Poisson(0.5), 20.0), (Gamma(20.0), 3.0), (Tweedie(1.5, 0.3), 15.0)], ids=str
)
def test_risk_of_signal_dependent_noise_is_the_error_in_unit_noise(law: NoiseModel, level: float, keep: float) -> None:
    noise = ScanNoise(law, WHITE)
    x = (level * torch.exp(0.3 * normal(1)))[:8]
    y = law.sample(x, seeded(2))
    g = shrink(keep, about=float(law.to_unit(torch.tensor(level))))
    risk, variance = risk_terms(g, law.to_unit(y), noise, normal(3)[:8])
    got = float(risk.mean() / variance.mean())
    assert got == pytest.approx(unit_error_of(g, x, y, noise), abs=0.07)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("gain", "level"), [(0.5, 20.0), (0.5, 4.0), (3.0, 9.0)])
def test_risk_of_whole_counts_is_near_the_error(gain: float, level: float, keep: float) -> None:
    """PURE, to first order in the step of one count: within a tenth of the noise variance."""
    noise = ScanNoise(Poisson(gain), WHITE, quantum=gain)
    x = level * torch.exp(0.3 * normal(1))
    y = noise.dequantised(noise.law.sample(x, seeded(2)), seeded(4))
    g = shrink(keep, about=float(noise.law.to_unit(torch.tensor(level))))
    assert risk_of(g, y, noise) == pytest.approx(error_of(g, x, y, noise), abs=0.12)


@pytest.mark.parametrize("quantum", [0.0, 1.0], ids=["continuous", "whole counts"])
def test_risk_is_least_where_the_error_is(quantum: float) -> None:
    """What it is for: ranking."""
    noise = ScanNoise(Poisson(1.0), WHITE, quantum=quantum)
    x = 10 * torch.exp(0.3 * normal(1))
    y = noise.law.sample(x, seeded(2))
    about = float(noise.law.to_unit(torch.tensor(10.0)))
    keeps = [0.1, 0.3, 0.5, 0.7, 0.9]
    risks = [risk_of(shrink(k, about), y, noise) for k in keeps]
    errors = [error_of(shrink(k, about), x, y, noise) for k in keeps]
    assert torch.corrcoef(torch.tensor([risks, errors]))[0, 1] > 0.99
    assert risks.index(min(risks)) == errors.index(min(errors))


@pytest.mark.parametrize("quantum", [0.0, 1.0], ids=["continuous", "whole counts"])
def test_risk_at_zero_counts_is_finite(quantum: float) -> None:
    noise = ScanNoise(Poisson(1.0), WHITE, quantum=quantum)
    y = torch.poisson(torch.full(SHAPE, 0.2), generator=seeded())
    assert risk_of(shrink(0.5, about=1.3), y, noise) < 2


def test_untouched_counts_have_the_noise_as_their_risk() -> None:
    noise = ScanNoise(Poisson(1.0), WHITE, quantum=1.0)
    x = torch.full(SHAPE, 30.0)
    y = noise.dequantised(noise.law.sample(x, seeded(2)), seeded(4))
    assert float(noise.variance(y).mean()) == pytest.approx(30 + 1 / 12, rel=0.01)
    assert risk_of(torch.zeros_like, y, noise) == pytest.approx(1, abs=0.03)
