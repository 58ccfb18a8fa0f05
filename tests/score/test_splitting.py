"""Count splitting: what is kept and the rest, the posterior mean as the least deviance, and a risk without bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from n2s_med.noise import Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score.splitting import COUNTS, counts_of, deviance, left_out, parts_of, split_risk

KEPT = 0.8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def poisson(x: Tensor, seed: int = 0) -> Tensor:
    return torch.poisson(x, seeded(seed))


def split(z: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What is shown of whole counts, and the rest."""
    (rest,) = left_out(z, 1 - KEPT, 1, seeded(seed))
    return COUNTS.to_unit(z - rest), rest


def score_to(mean: Tensor, shown: Tensor) -> Tensor:
    """The score that makes ``mean`` of what is shown the estimate."""
    low, high = torch.full_like(shown, -20.0), torch.full_like(shown, 20.0)
    counts = COUNTS.from_unit(shown)
    for _ in range(60):
        middle = (low + high) / 2
        below = COUNTS.mean_from_unit(counts, middle) < mean
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_counts_come_back_from_unit_data(gain: float) -> None:
    z = poisson(torch.linspace(0, 3000, 20_000))
    noise = ScanNoise(Poisson(gain), Correlation.white(3), gain)
    assert torch.equal(counts_of(noise.law.to_unit(gain * z)), z)
    spread = noise.law.to_unit(noise.dequantised(gain * z, seeded(1)))
    assert float((counts_of(spread) == z).float().mean()) > 0.999  # but for rounding at a cell's border


def test_kept_and_rest_are_independent_poisson_counts() -> None:
    z = poisson(torch.full((400_000,), 3.0))
    shown, rest = split(z, 1)
    kept = counts_of(shown)
    assert torch.equal(kept + rest, z)
    for part, mean in ((kept, 2.4), (rest, 0.6)):
        assert float(part.mean()) == pytest.approx(mean, rel=0.01)
        assert float(part.var()) == pytest.approx(mean, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack((kept, rest)))[0, 1])) < 0.01


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.75, 0.8, 0.9])
def test_no_count_is_left_out_twice(kept: float) -> None:
    z = poisson(torch.full((50_000,), 3.0))
    times = parts_of(kept)
    rests = left_out(z, 1 - kept, times, seeded(1))
    assert len(rests) == times
    assert all(float(rest.mean()) == pytest.approx(3 * (1 - kept), rel=0.03) for rest in rests)
    left = z - sum(rests)
    assert (left >= 0).all()
    assert float(left.mean()) == pytest.approx(3 * (1 - times * (1 - kept)), abs=0.03)


@pytest.mark.parametrize("mean", [0.3, 2.0, 30.0])
def test_the_posterior_mean_has_the_least_deviance(mean: float) -> None:
    """Gamma prior of shape a and rate b: ``E[p x given z'] = p (a + z') / (b + p)``."""
    shape = 2.0
    rate = shape / mean
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        x = torch.distributions.Gamma(shape, rate).sample((400_000,))
    shown, rest = split(poisson(x, 4), 5)
    best = KEPT * (shape + counts_of(shown)) / (rate + KEPT)

    def loss(factor: float) -> float:
        return float(deviance(score_to(factor * best, shown), shown, rest, KEPT).mean())

    assert loss(1.0) < min(loss(0.93), loss(1.07))


def test_the_deviance_has_a_slope_everywhere() -> None:
    shown, rest = COUNTS.to_unit(torch.tensor([0.0, 0.0, 3.0, 50.0])), torch.tensor([0.0, 2.0, 0.0, 9.0])
    score = torch.full((4,), 0.3, requires_grad=True)
    deviance(score, shown, rest, KEPT).sum().backward()  # type: ignore[no-untyped-call]
    assert score.grad is not None
    assert score.grad.isfinite().all()
    assert (score.grad != 0).all()


@pytest.mark.parametrize("mean", [0.5, 2.0, 20.0])
def test_the_risk_is_the_squared_error(mean: float) -> None:
    x = mean * (1 + 0.5 * torch.sin(torch.arange(300_000.0))).reshape(1, 1, -1)
    z = poisson(x)

    def half_way(u: Tensor) -> Tensor:
        return 0.5 * (COUNTS.to_unit(torch.tensor(KEPT * mean)) - u)

    error, variance = split_risk(half_way, COUNTS.to_unit(z), KEPT, seeded(1))
    found = float(error.mean() / variance.mean())
    shown, _ = split(z, 2)
    estimate = COUNTS.mean_from_unit(COUNTS.from_unit(shown), half_way(shown))
    assert found == pytest.approx(float((estimate - KEPT * x).square().mean() / (KEPT * mean)), abs=0.02)
