"""The published blind methods, with exact scores of images of a few clean values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson
from n2s_med.noise.by_score import (
    Score,
    power_by_two_perturbations,
    search,
    total_variation,
    two_perturbations,
)

CLEAN = torch.tensor([40.0, 100.0, 250.0], dtype=torch.float64)


def image(size: int = 48) -> Tensor:
    """Three plateaus."""
    return CLEAN.repeat_interleave(size // 3).expand(size, size).contiguous()


def mixture(log_likelihood: Callable[[Tensor, Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor]) -> Score:
    """Score of data whose clean values are those of CLEAN, by the posterior weights of each."""

    def score(y: Tensor) -> Tensor:
        weight = torch.softmax(log_likelihood(y[..., None], CLEAN), dim=-1)
        return (weight * slope(y[..., None], CLEAN)).sum(-1)

    return score


def gaussian(sigma: float) -> tuple[NoiseModel, Score]:
    return Gaussian(sigma), mixture(lambda y, x: -((y - x) ** 2) / (2 * sigma**2), lambda y, x: (x - y) / sigma**2)


def gamma(k: float) -> tuple[NoiseModel, Score]:
    return Gamma(k), mixture(lambda y, x: -k * x.log() - k * y / x, lambda y, x: (k - 1) / y - k / x)


def poisson(gain: float) -> tuple[NoiseModel, Score]:
    """The score between the counts by the digamma function, per unit of y."""
    return Poisson(gain), mixture(
        lambda y, x: (y * x.log() - x) / gain, lambda y, x: ((x / gain).log() - torch.digamma(y / gain + 1)) / gain
    )


CASES = [gaussian(10.0), gaussian(25.0), poisson(2.0), poisson(4.0), gamma(50.0), gamma(100.0)]


def noisy(law: NoiseModel) -> Tensor:
    y = law.sample(image(), torch.Generator().manual_seed(4))
    return y.clamp_min(1e-3) if law.variance_power else y


@pytest.mark.parametrize(("law", "score"), CASES, ids=lambda case: str(case) if isinstance(case, NoiseModel) else "")
def test_two_perturbations(law: NoiseModel, score: Score) -> None:
    (true,) = law.parameters.values()
    (found,) = two_perturbations(noisy(law), score, law.name).parameters.values()
    assert found == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(
    ("law", "score"),
    [gaussian(10.0), gaussian(25.0)],
    ids=lambda case: str(case) if isinstance(case, NoiseModel) else "",
)
def test_search_for_sigma(law: NoiseModel, score: Score) -> None:
    (true,) = law.parameters.values()
    (found,) = search(noisy(law), score, law.name).parameters.values()
    assert found == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(
    ("law", "score"), [poisson(4.0), gamma(50.0)], ids=lambda case: str(case) if isinstance(case, NoiseModel) else ""
)
def test_search_stays_on_its_grid(law: NoiseModel, score: Score) -> None:
    """Its penalties for these laws have their minimum near the true level, not at it."""
    (true,) = law.parameters.values()
    (found,) = search(noisy(law), score, law.name).parameters.values()
    assert true / 2 < found < 2.5 * true


def test_posterior_variance_is_read_as_noise() -> None:
    """Normal prior of variance 30 and noise of variance 10: ``-ε/Δs`` is their sum."""
    found = two_perturbations(100 + torch.randn(5000, dtype=torch.float64), lambda y: -(y - 100) / 40, "gaussian")
    assert found.parameters["sigma"] == pytest.approx(40**0.5, rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 1.5, 2.0])
def test_power(power: float) -> None:
    """Scores ``s = c y^(1-ρ) - ρ/(2 y)`` keep ``y^(ρ-2) (ρ + 2 y s)`` at ``2 c``; c is 2."""
    y = 1 + torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = power_by_two_perturbations(y, lambda v: 2 * v ** (1 - power) - power / (2 * v))
    assert found == pytest.approx(power, abs=0.02)


def test_total_variation() -> None:
    assert float(total_variation(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))) == pytest.approx(1 + 2)


def test_refusals() -> None:
    y = image()
    for method in (search, two_perturbations):
        with pytest.raises(ConfigurationError, match="published for gaussian, poisson, gamma, not for tweedie"):
            method(y, lambda v: -v, "tweedie")
    with pytest.raises(InputError, match="maximum, which is not positive"):
        search(-y, lambda v: -v, "gaussian")
    with pytest.raises(InputError, match="does not change as that of noise"):
        two_perturbations(y, lambda v: v, "gaussian")
