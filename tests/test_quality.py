"""Clean-free figures against direct computation, and verdicts on denoisers whose faults are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from n2s_med.denoise import Figures
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson, Tweedie
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.quality import Residual, quantities, residual_of, verdicts

WHITE = Correlation.white(3)
LAWS = (Gaussian(3.0), Poisson(0.7), Gamma(40.0), Tweedie(1.4, 0.3))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volume(shape: tuple[int, ...] = (37, 9, 8), seed: int = 0) -> Tensor:
    return 20 + 60 * torch.rand(shape, generator=seeded(seed))


def directly(y: Tensor, x_hat: Tensor, keep: Tensor, law: NoiseModel) -> Residual:
    """The same figures, from their definitions, in numpy."""
    k = keep.numpy()
    r = np.where(k, (law.to_unit(y) - law.expected_unit(x_hat)).double().numpy(), np.nan)
    mean, variance = r[k].mean(), r[k].var()
    neighbours = []
    for axis in range(r.ndim):
        n = r.shape[axis]
        here, there = np.take(r, range(n - 1), axis), np.take(r, range(1, n), axis)
        both = np.isfinite(here) & np.isfinite(there)
        product = (here[both] * there[both]).mean() if both.any() else math.nan
        neighbours.append((product - mean**2) / variance if both.any() else 0.0)
    estimate = law.expected_unit(x_hat).double().numpy()[k]
    return Residual(mean, variance, tuple(neighbours), float(np.corrcoef(r[k], estimate)[0, 1]), estimate.var())


def same(a: Residual, b: Residual) -> None:
    for name in ("mean", "variance", "with_estimate", "estimate_variance"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4, abs=1e-5)
    assert a.neighbours == pytest.approx(b.neighbours, abs=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("shape", [(37, 9, 8), (16, 9, 8), (17, 9, 8), (5, 9, 1), (1, 9, 8), (40, 30)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_residual_by_its_definition(law: NoiseModel, shape: tuple[int, ...], masked: bool) -> None:
    x = volume(shape)
    y = law.sample(x, seeded(1)).clamp_min(0.1)
    x_hat = 0.3 * y + 0.7 * x
    keep = torch.rand(shape, generator=seeded(2)) < (0.6 if masked else 2)
    noise = ScanNoise(law, Correlation.white(len(shape)))
    same(residual_of(y, x_hat, keep, noise), directly(y, x_hat, keep, law))


@pytest.mark.parametrize("slices", [8, 1])
def test_residual_where_the_level_is_a_map(slices: int) -> None:
    """A map over a single slice has two axes, its volume three."""
    x = volume((37, 9, slices))
    sigma = 1 + torch.rand(x.shape, generator=seeded(2))
    law = Gaussian(sigma if slices > 1 else sigma[..., 0])
    y = x + sigma * torch.randn(x.shape, generator=seeded(1))
    keep = torch.ones_like(x, dtype=torch.bool)
    same(residual_of(y, x, keep, ScanNoise(law, WHITE)), directly(y, x, keep, Gaussian(sigma)))


def test_residual_of_correlated_noise() -> None:
    correlation = Correlation.from_kernel(
        torch.tensor([0.5, 1, 0.5])[:, None, None] * torch.tensor([1, 2, 1.0])[:, None]
    )
    x = volume((40, 40, 40))
    y = x + 3 * correlation.color(torch.randn(x.shape, generator=seeded(1)))
    found = residual_of(y, x, torch.ones_like(x, dtype=torch.bool), ScanNoise(Gaussian(3.0), correlation))
    wanted = [correlation.autocorrelation(lag) for lag in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert found.neighbours == pytest.approx(wanted, abs=0.02)
    assert found.variance == pytest.approx(1, abs=0.03)


def test_what_the_law_does_not_admit_is_left_out() -> None:
    law = Gamma(40.0)
    x = volume()
    y = law.sample(x, seeded(1))
    keep = torch.rand(x.shape, generator=seeded(2)) < 0.7
    y_air = torch.where(keep, y, 0.0)
    noise = ScanNoise(law, WHITE)
    same(residual_of(y_air, x, torch.ones_like(keep), noise), directly(y, x, keep, law))
    above = y >= 40
    floored = ScanNoise(law, WHITE, floor=40.0)
    same(residual_of(y, x, torch.ones_like(keep), floored), directly(y, x, above, law))


# -- verdicts ------------------------------------------------------------------------------------------


def posterior(sigma: float = 3.0, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """White Gaussian data under white Gaussian noise, and their exact posterior mean."""
    x = 100 + spread * torch.randn((40, 40, 40), generator=seeded(3))
    y = x + sigma * torch.randn(x.shape, generator=seeded(4))
    return y, 100 + (y - 100) * spread**2 / (spread**2 + sigma**2)


def failed(y: Tensor, x_hat: Tensor, noise: ScanNoise, **figures: Any) -> set[str]:
    told = Figures(**({"step": 1.0, "step_sure": 1.0, "risk": 0.5} | figures))
    everywhere = torch.ones_like(y, dtype=torch.bool)
    checks = verdicts(residual_of(y, x_hat, everywhere, noise), y, x_hat, everywhere, noise, told)
    for check in checks:
        assert check.passed == (check.low <= check.value <= check.high)
        assert check.sentence.startswith("Holds: " if check.passed else "Does not hold: ")
    return {check.name for check in checks if not check.passed}


def smooth() -> tuple[Tensor, Tensor]:
    """A smooth object, and it with noise."""
    wave = torch.sin(torch.arange(40) / 4)
    x = 100 + 30 * wave[:, None, None] * wave[:, None] * wave
    return x, x + 3 * torch.randn(x.shape, generator=seeded(4))


def test_a_perfect_denoiser_passes() -> None:
    x, y = smooth()
    assert failed(y, x, ScanNoise(Gaussian(3.0), WHITE), risk=0.0) == set()


@pytest.mark.parametrize(("least", "told"), [(0.97, True), (0.0, False)])
def test_a_level_that_the_scan_does_not_tell_fails(least: float, told: bool) -> None:
    x, y = smooth()
    inside, noise = torch.ones_like(y, dtype=torch.bool), ScanNoise(Gaussian(3.0), WHITE)
    figures = Figures(step=1.0, step_sure=1.0, risk=0.0)
    checks = verdicts(residual_of(y, x, inside, noise), y, x, inside, noise, figures, (least, 1.03))
    assert [check.passed for check in checks] == [told] + [True] * (len(checks) - 1)
    assert checks[0].name == "noise level"


@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0, 60.0])
def test_the_exact_posterior_mean_passes(spread: float) -> None:
    """At every contrast: what noise is left in the estimate is missing in the residual, which follows it so."""
    y, x_hat = posterior(spread=spread)
    risk = spread**2 / (spread**2 + 3**2)
    assert failed(y, x_hat, ScanNoise(Gaussian(3.0), WHITE), risk=risk) <= {"maximum"}


@pytest.mark.parametrize("shape", [(60, 50, 1), (60, 50)], ids=str)
def test_single_slices(shape: tuple[int, ...]) -> None:
    x = torch.linspace(50, 150, 60)[:, None].expand(60, 50).reshape(shape)
    y = x + 3 * torch.randn(shape, generator=seeded(4))
    assert failed(y, x, ScanNoise(Gaussian(3.0), Correlation.white(2)), risk=0.0) == set()


def test_an_over_smoother_fails() -> None:
    """What it takes away is the object: correlated, too much, and its peak is gone."""
    x, y = smooth()
    flat = torch.full_like(y, 100.0) + 0.1 * (x - 100)
    assert {"residual variance", "residual correlation", "residual against image"} <= failed(
        y, flat, ScanNoise(Gaussian(3.0), WHITE), risk=0.0
    )


@pytest.mark.parametrize("assumed", [1.5, 6.0])
def test_a_wrong_level_fails(assumed: float) -> None:
    x, y = smooth()
    names = failed(y, x, ScanNoise(Gaussian(assumed), WHITE), risk=0.0)
    assert "residual variance" in names


def test_a_denoiser_that_does_nothing_fails_unless_its_risk_says_so() -> None:
    _, y = smooth()
    barely = y + 1e-3 * torch.randn(y.shape, generator=seeded(5))
    assert "residual variance" in failed(y, barely, ScanNoise(Gaussian(3.0), WHITE), risk=0.0)
    assert "residual variance" not in failed(y, barely, ScanNoise(Gaussian(3.0), WHITE), risk=1.0)


def test_wrong_correlation_bias_and_step_fail() -> None:
    x, y = smooth()
    correlated = Correlation.from_kernel(torch.tensor([0.6, 1, 0.6])[:, None, None])
    assert failed(y, x, ScanNoise(Gaussian(3.0), correlated), risk=0.0) == {"residual correlation"}
    assert "residual mean" in failed(y, x + 1, ScanNoise(Gaussian(3.0), WHITE), risk=0.0)
    assert failed(y, x, ScanNoise(Gaussian(3.0), WHITE), risk=0.0, step_sure=0.5) == {"step length"}


def test_a_lost_maximum_fails() -> None:
    x, y = smooth()
    x, y = x.clone(), y.clone()
    y[20, 20, 20] = 200
    assert failed(y, x, ScanNoise(Gaussian(3.0), WHITE), risk=0.0) == {"maximum"}


def test_a_raised_maximum_fails_unless_its_error_explains_it() -> None:
    """One voxel is known to the error that remains, no better."""
    x, y = smooth()
    x = x.clone()
    x[20, 20, 20] = y.max() + 1.3 * 3.0
    noise = ScanNoise(Gaussian(3.0), WHITE)
    assert "maximum" in failed(y, x, noise, risk=0.1)
    assert "maximum" not in failed(y, x, noise, risk=0.5)


# -- quantities ----------------------------------------------------------------------------------------


def test_quantities_by_numpy() -> None:
    y, x_hat = volume(seed=1), volume(seed=2)
    valid = torch.rand(y.shape, generator=seeded(3)) < 0.5
    told = quantities(y, x_hat, valid)
    for name, measure in {
        "mean": np.mean,
        "maximum": np.max,
        "percentile_1": lambda v: np.percentile(v, 1),
        "percentile_50": np.median,
        "percentile_99": lambda v: np.percentile(v, 99),
    }.items():
        before, after = (float(measure(v[valid].double().numpy())) for v in (y, x_hat))
        assert told[f"{name}_before_units"] == pytest.approx(before, rel=1e-6)
        assert told[f"{name}_after_units"] == pytest.approx(after, rel=1e-6)
        assert told[f"{name}_shift_percent"] == pytest.approx(100 * (after - before) / before, rel=1e-4)
    assert len(told) == 15


def test_a_shift_from_zero_has_no_percentage_and_from_below_has_a_sign() -> None:
    y = torch.tensor([-4.0, 0.0, 0.0, 0.0, 4.0])
    told = quantities(y, y + 1, torch.ones(5, dtype=torch.bool))
    assert "mean_shift_percent" not in told
    assert "percentile_50_shift_percent" not in told
    assert told["maximum_shift_percent"] == pytest.approx(25)
    assert float(told["percentile_1_shift_percent"]) > 0  # type: ignore[arg-type]


def test_large_volumes_are_summarised_from_a_part() -> None:
    y = torch.linspace(0, 1, 3_000_000)
    told = quantities(y, y, torch.ones_like(y, dtype=torch.bool))
    assert told["percentile_50_before_units"] == pytest.approx(0.5, abs=1e-3)
    assert told["maximum_before_units"] == 1


def test_whole_counts_are_judged_in_counts() -> None:
    """Few counts have no unit-noise domain: the residual is taken over the root of the mean variance."""
    x = 0.5 + 4 * torch.rand((30, 30, 30), generator=seeded(1))
    y = Poisson(1.0).sample(x, seeded(2))
    noise = ScanNoise(Poisson(1.0), WHITE, quantum=1.0)
    found = residual_of(y, x, torch.ones_like(x, dtype=torch.bool), noise)
    r = ((y - x) / noise.law.variance(x).mean().sqrt()).double().numpy()
    assert found.mean == pytest.approx(r.mean(), abs=1e-4)
    assert found.variance == pytest.approx(r.var(), rel=1e-3)
    assert found.with_estimate == pytest.approx(np.corrcoef(r.ravel(), x.numpy().ravel())[0, 1], abs=1e-4)
    assert failed(y, x, noise, risk=0.0) == set()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_residual_of_the_truth_has_no_mean_and_unit_variance(law: NoiseModel) -> None:
    x = volume((60, 60, 60))
    found = residual_of(law.sample(x, seeded(1)), x, torch.ones_like(x, dtype=torch.bool), ScanNoise(law, WHITE))
    assert found.mean == pytest.approx(0, abs=0.01)
    assert found.variance == pytest.approx(1, abs=0.05)
