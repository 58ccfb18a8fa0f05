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
    """The probes' mean is ``tr(Σ L ∂g/∂u)``; for ``g = -c u`` it is ``-c`` times the trace of ``L³``."""
    u, white = normal(1), normal(2)
    square, trace = step_terms(shrink(0.3), u, COLORED, white)
    torch.testing.assert_close(square, 0.49 * COLORED.color(u) ** 2, rtol=1e-3, atol=1e-3)
    root = COLORED._transfer((48, 1 + 2 * 24 - 1))
    full = torch.cat((root, root[:, 1:-1]), dim=1)  # both halves of the spectrum
    assert float(trace.mean()) == pytest.approx(-0.7 * float((full**3).mean()), rel=0.02)


@pytest.mark.parametrize("correlation", [WHITE, COLORED], ids=["white", "correlated"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_step_length_undoes_a_wrong_scale(correlation: Correlation, scale: float) -> None:
    """For a Gaussian signal the exact ``g = Lᵀ s`` asks for a step of 1; ``scale g``, for its inverse."""
    root = correlation._transfer(SHAPE[-2:])
    u = 1.5 * normal(1) + correlation.color(normal(2))

    def g(v: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(v, dim=(-2, -1)) * -root / (1.5**2 + root**2)
        return scale * torch.fft.irfftn(spectrum, s=SHAPE[-2:], dim=(-2, -1))

    square, trace = step_terms(g, u, correlation, normal(3))
    assert float(-trace.mean() / square.mean()) == pytest.approx(1 / scale, rel=0.02)


def true_error(g: Function, noise: ScanNoise, x: Tensor, y: Tensor) -> float:
    law = noise.law
    x_hat = law.mean_from_unit(y, noise.correlation.color(g(law.to_unit(y))))
    return float((x_hat - x).square().mean())


@pytest.mark.parametrize("correlation", [WHITE, COLORED], ids=["white", "correlated"])
@pytest.mark.parametrize("keep", [0.2, 0.7, 1.0])
def test_gaussian_risk_is_the_error(correlation: Correlation, keep: float) -> None:
    noise = ScanNoise(Gaussian(2.0), correlation)
    x = 3.0 * normal(1) + 10
    y = x + 2.0 * correlation.color(normal(2))
    g = shrink(keep, about=5.0)
    risk, variance = risk_terms(g, y / 2, noise, normal(3))
    assert float(variance.mean()) == pytest.approx(4)
    assert float(risk.mean()) == pytest.approx(true_error(g, noise, x, y), abs=0.06 * 4)


def test_sigma_map_enters_the_risk() -> None:
    sigma = torch.linspace(1, 4, 48).expand(48, 48)
    noise = ScanNoise(Gaussian(sigma), WHITE)
    x = 3.0 * normal(1)
    y = noise.law.sample(x, seeded(2))
    risk, variance = risk_terms(shrink(0.6), noise.law.to_unit(y), noise, normal(3))
    torch.testing.assert_close(variance, (sigma**2).expand(SHAPE))
    assert float(risk.mean()) == pytest.approx(true_error(shrink(0.6), noise, x, y), abs=0.03 * 6)


@pytest.mark.parametrize("keep", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    ("law", "level"),
    [(Poisson(0.5), 20.0), (Poisson(0.5), 4.0), (Gamma(20.0), 3.0), (Tweedie(1.5, 0.3), 15.0)],
    ids=lambda value: str(value),
)
def test_risk_of_signal_dependent_noise_is_near_the_error(law: NoiseModel, level: float, keep: float) -> None:
    """First order in the noise: within a tenth of the noise variance."""
    noise = ScanNoise(law, WHITE)
    x = level * torch.exp(0.3 * normal(1))
    y = law.sample(x, seeded(2))
    g = shrink(keep, about=float(law.to_unit(torch.tensor(level))))
    risk, variance = risk_terms(g, law.to_unit(y), noise, normal(3))
    error = true_error(g, noise, x, y)
    assert float((risk.mean() - error).abs() / variance.mean()) < 0.1
    assert float(variance.mean()) == pytest.approx(float((y - x).square().mean()), rel=0.06)


def test_risk_is_least_where_the_error_is() -> None:
    """What it is for: ranking."""
    noise = ScanNoise(Poisson(1.0), WHITE)
    x = 10 * torch.exp(0.3 * normal(1))
    y = noise.law.sample(x, seeded(2))
    about = float(noise.law.to_unit(torch.tensor(10.0)))
    keeps = [0.1, 0.3, 0.5, 0.7, 0.9]
    u = noise.law.to_unit(y)
    risks = [float(risk_terms(shrink(k, about), u, noise, normal(3))[0].mean()) for k in keeps]
    errors = [true_error(shrink(k, about), noise, x, y) for k in keeps]
    assert torch.corrcoef(torch.tensor([risks, errors]))[0, 1] > 0.99
    assert risks.index(min(risks)) == errors.index(min(errors))


def test_risk_at_zero_counts_is_finite() -> None:
    noise = ScanNoise(Poisson(1.0), WHITE)
    y = torch.poisson(torch.full(SHAPE, 0.2), generator=seeded())
    risk, variance = risk_terms(shrink(0.5, about=1.3), noise.law.to_unit(y), noise, normal(3))
    assert torch.isfinite(risk).all()
    assert torch.isfinite(variance).all()


def test_lattice_counts_as_noise() -> None:
    noise = ScanNoise(Poisson(1.0), WHITE, quantum=1.0)
    x = torch.full(SHAPE, 30.0)
    y = noise.dequantised(noise.law.sample(x, seeded(2)), seeded(4))
    risk, variance = risk_terms(torch.zeros_like, noise.law.to_unit(y), noise, normal(3))
    wanted = 30 + 1 / 12
    assert float(variance.mean()) == pytest.approx(wanted, rel=0.01)
    assert float(risk.mean()) == pytest.approx(wanted, rel=0.03)
