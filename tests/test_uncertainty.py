"""The calibration of the uncertainty map: levels that are found without a clean image, however small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from n2s_med.noise.correlation import Correlation
from n2s_med.uncertainty import LEAST, REGION, Curve, Errors, mean_filter, shared_voxels

SHAPE = (48, 48, 48)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def smooth(volume: Tensor) -> Tensor:
    return mean_filter(mean_filter(volume, 1), 1)


def found(x: Tensor, seed: int) -> tuple[Errors, Tensor]:
    """What is measured of a smoothing of ``x`` with unit noise, and its squared error."""
    y, probe = x + normal(seed), normal(seed + 100).sign()
    estimate, answer = smooth(y), smooth(probe)
    risk = (estimate - y).square() + 2 * probe * (answer - probe) + 1
    errors = Errors.of(risk, estimate - y, probe, answer, torch.ones(SHAPE))
    return Errors.joined([errors], [torch.ones(SHAPE, dtype=torch.bool)]), (estimate - x).square().flatten()


@pytest.mark.parametrize("seed", range(4))
def test_where_little_is_left_its_level_is_found(seed: int) -> None:
    """The whole risk of so few voxels is chance; what is left of the noise is not."""
    errors, squared = found(torch.zeros(SHAPE), seed)
    part = torch.arange(0, errors.risk.numel(), 5)
    true = float(squared[part].mean())
    assert true < 0.03
    assert float(errors.risk[part].std()) / len(part) ** 0.5 > 0.3 * true
    assert errors.level(part) == pytest.approx(true, rel=0.25)


def test_where_structure_is_smoothed_away_the_whole_risk_decides() -> None:
    x = 3 * (torch.arange(48) % 2 * 2.0 - 1).expand(SHAPE)  # finer than any neighbourhood
    errors, squared = found(x, 0)
    part = torch.arange(0, errors.risk.numel(), 5)
    assert float((errors.coarse + errors.fine)[part].mean()) < 1
    assert errors.level(part) == pytest.approx(float(squared[part].mean()), rel=0.02)


def test_the_curve_rises_and_keeps_a_share_of_what_is_said() -> None:
    errors, _ = found(torch.zeros(SHAPE), 0)
    nothing = Errors(*(torch.zeros_like(errors.risk) for _ in range(4)), torch.ones_like(errors.risk))
    said = torch.linspace(0.01, 0.2, errors.risk.numel())
    curve = Curve.fitted(said, said, nothing)
    torch.testing.assert_close(curve.measured, LEAST * curve.said)
    assert (Curve.fitted(said, said, errors)(said).diff() >= 0).all()


def test_what_is_said_and_the_risk_may_hang_on_the_same_noise() -> None:
    """The error is one everywhere; bins by what is said of each voxel would have a risk from below to above it."""
    shared = normal(0)
    said = 1 + 0.3 * shared.clamp(-2, 2)
    risk, one, none = 1 + 2 * shared, torch.ones(SHAPE), torch.zeros(SHAPE)
    errors = Errors.joined([Errors(risk, none, none, none, one)], [one.bool()])
    together = Curve.fitted(said.flatten(), mean_filter(said, REGION).flatten(), errors)
    assert float((together.measured[1:] - 1).abs().max()) < 0.25
    alone = Curve.fitted(said.flatten(), said.flatten(), errors)
    assert float((alone.measured[1:] - 1).abs().max()) > 0.8


def test_what_probes_say_is_averaged() -> None:
    many = Errors.mean([found(torch.zeros(SHAPE), 0)[0] for _ in range(2)])
    torch.testing.assert_close(many.risk, found(torch.zeros(SHAPE), 0)[0].risk)


def test_too_few_voxels_leave_the_variance_as_it_is() -> None:
    few = Errors(*(torch.ones(500) for _ in range(5)))
    said = torch.linspace(0, 1, 500)
    assert torch.equal(Curve.fitted(said, said, few)(said), said)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 1), (3, 3, 3)], ids=str)
def test_mean_squares_of_correlated_noise_scatter_as_those_of_fewer_voxels(shape: tuple[int, ...]) -> None:
    correlation = Correlation.from_kernel(torch.ones(shape))
    drawn = [correlation.color(torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(s))) for s in range(300)]
    scatter = torch.stack([noise[2:-2, 2:-2, 2:-2].square().mean() for noise in drawn]).var()
    voxels = 12**3 / shared_voxels(correlation.kernel)
    assert float(scatter) == pytest.approx(2 / voxels, rel=0.3)
