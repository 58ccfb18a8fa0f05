"""The noise of a scan from the scan alone, against scans whose noise is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson, Tweedie
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import Estimate, estimate, mode, quantum_of
from n2s_med.phantoms import brain_phantom, ct_phantom, pet_phantom

ISOTROPIC = (1.0, 1.0, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def balls(size: int = 64) -> Tensor:
    """Overlapping balls of every intensity from 40 to 400 in a flat field of 100, with soft edges."""
    generator = seeded(5)
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.float32),) * 3, indexing="ij")
    x = torch.full((size,) * 3, 100.0)
    for _ in range(24):
        centre = torch.rand(3, generator=generator) * size
        radius = 5 + 9 * float(torch.rand((), generator=generator))
        level = 40 * 10 ** float(torch.rand((), generator=generator))
        distance = torch.stack([a - c for a, c in zip(axes, centre, strict=True)]).square().sum(0).sqrt()
        x += (level - x) * torch.sigmoid(2 * (radius - distance))
    return x


@cache
def brain() -> Tensor:
    return brain_phantom()


def found(y: Tensor, law: str | None = None, valid: Tensor | None = None, **options: bool) -> Estimate:
    inside = torch.ones_like(y, dtype=torch.bool) if valid is None else valid
    return estimate(y, inside, (1.0,) * y.ndim, law, **options)


# -- levels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [2.0, 10.0, 40.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_gaussian_level(sigma: float, seed: int) -> None:
    result = found(Gaussian(sigma).sample(balls() - 150, seeded(seed)), "gaussian")
    assert result.noise.law.parameters["sigma"] == pytest.approx(sigma, rel=0.05)
    assert result.noise.correlation.is_white
    assert math.isnan(result.power)
    assert result.fits


@pytest.mark.parametrize("gain", [0.05, 1.0, 7.3])
def test_whole_counts_are_recognised_exactly(gain: float) -> None:
    result = found(Poisson(gain).sample(balls() * gain / 10, seeded()), "poisson")
    assert result.noise.law.parameters["gain"] == pytest.approx(gain, rel=1e-5)
    assert result.noise.quantum == pytest.approx(gain, rel=1e-5)
    assert result.level_interval == (1.0, 1.0)


@pytest.mark.parametrize("gain", [0.2, 1.0])
def test_poisson_level_where_counts_are_hidden(gain: float) -> None:
    """Rescaled slice by slice, as a scanner's corrections do, the values lie on no lattice."""
    y = Poisson(gain).sample(balls(), seeded()) * torch.linspace(0.99, 1.01, 64)
    result = found(y, "poisson")
    assert result.noise.quantum == 0
    assert result.noise.law.parameters["gain"] == pytest.approx(gain, rel=0.1)


@pytest.mark.parametrize("k", [20.0, 100.0])
def test_gamma_level(k: float) -> None:
    result = found(Gamma(k).sample(balls(), seeded()), "gamma")
    assert result.noise.law.parameters["k"] == pytest.approx(k, rel=0.15)


@pytest.mark.parametrize("power", [1.3, 1.6])
def test_tweedie_power_and_level(power: float) -> None:
    law = Tweedie(power, 0.2)
    result = found(law.sample(balls(), seeded()), "tweedie")
    assert result.noise.law.parameters["power"] == pytest.approx(power, abs=0.2)
    assert result.power_interval[0] - 0.2 < power < result.power_interval[1] + 0.2
    at = torch.tensor([60.0, 100.0, 200.0])
    torch.testing.assert_close(result.noise.law.variance(at), law.variance(at), rtol=0.25, atol=0)


@pytest.mark.parametrize("law", [Gaussian(10.0), Poisson(1.5), Gamma(60.0)], ids=str)
def test_exponent_of_the_variance(law: NoiseModel) -> None:
    y = law.sample(balls(), seeded()) + 1e-4 * torch.rand(balls().shape, generator=seeded(1))
    assert found(y).power == pytest.approx(law.variance_power, abs=0.2)


def test_intervals_mostly_hold_the_truth() -> None:
    covered = 0
    for seed in range(8):
        result = found(Gaussian(10.0).sample(balls(48), seeded(seed)), "gaussian")
        level = result.noise.law.parameters["sigma"]
        low, high = result.level_interval
        assert 0.85 < low <= 1.001
        assert 0.999 <= high < 1.15
        covered += low * level * 0.99 <= 10 <= high * level * 1.01
    assert covered >= 5


PHANTOMS: dict[str, tuple[Callable[[], Tensor], NoiseModel, float]] = {
    "ct": (lambda: ct_phantom((96, 72, 58)), Gaussian(25.0), 0.05),
    "mr": (lambda: 1000 * brain(), Gaussian(30.0), 0.1),
    "pet": (lambda: pet_phantom((64, 64, 32), (5.0, 5.0, 5.0)).activity, Poisson(50.0), 0.001),
    "pet, few counts": (lambda: pet_phantom((64, 64, 32), (5.0, 5.0, 5.0)).activity, Poisson(1000.0), 0.001),
    "us": (lambda: 10 + 1000 * brain(), Gamma(50.0), 0.15),
}


@pytest.mark.parametrize("name", PHANTOMS)
def test_levels_of_phantoms(name: str) -> None:
    make, law, tolerance = PHANTOMS[name]
    (level,) = law.parameters.values()
    (measured,) = found(law.sample(make(), seeded()), law.name).noise.law.parameters.values()
    assert measured == pytest.approx(level, rel=tolerance)


# -- law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Gaussian(8.0), Poisson(1.0), Gamma(50.0)], ids=str)
def test_the_law_is_told(law: NoiseModel) -> None:
    result = found(law.sample(balls(), seeded()))
    assert result.misfit[law.name] < 0.25
    assert result.noise.law.variance_power == pytest.approx(law.variance_power, abs=0.25)


@pytest.mark.parametrize(
    ("true", "asked"), [(Gamma(50.0), "gaussian"), (Gaussian(10.0), "gamma"), (Gaussian(10.0), "poisson")], ids=str
)
def test_a_poor_fit_is_told_and_a_better_law_named(true: NoiseModel, asked: str) -> None:
    result = found(true.sample(balls(), seeded()), asked)
    assert not result.fits
    assert result.noise.law.name == asked
    assert result.better_law in (true.name, "tweedie")
    assert found(true.sample(balls(), seeded()), true.name).better_law is None


def test_an_unknown_law() -> None:
    with pytest.raises(ConfigurationError, match=r"'cauchy'.*Choose one of gaussian"):
        found(balls(), "cauchy")


def test_negative_values_leave_the_gaussian_law_alone() -> None:
    result = found(Gaussian(10.0).sample(balls() - 150, seeded()))
    assert result.noise.law.name == "gaussian"
    assert set(result.misfit) == {"gaussian"}
    assert all(map(math.isnan, result.power_interval))


# -- correlation ---------------------------------------------------------------------------------------


def kernel(width: float) -> Correlation:
    axis = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * width**2))
    return Correlation.from_kernel(axis[:, None, None] * axis[None, :, None] * torch.tensor([1.0]))


@pytest.mark.parametrize("width", [0.5, 0.8, 1.2])
def test_correlation_of_neighbours(width: float) -> None:
    """Coloured within the slices, white across them."""
    true = kernel(width)
    noise = true.color(torch.randn(balls().shape, generator=seeded()))
    result = found(balls() - 150 + 10 * noise, "gaussian")
    wanted = [true.autocorrelation(lag) for lag in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert result.neighbour_correlation == pytest.approx(wanted, abs=0.1)
    assert not result.noise.correlation.is_white
    measured = [result.noise.correlation.autocorrelation(lag) for lag in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert measured == pytest.approx(wanted, abs=0.1)
    assert result.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("law", [Gaussian(10.0), Poisson(1.0), Gamma(50.0)], ids=str)
@pytest.mark.parametrize("shape", [(64, 64, 64), (64, 64, 5), (64, 64)], ids=str)
def test_white_is_called_white(law: NoiseModel, shape: tuple[int, ...]) -> None:
    x = balls()[..., :5] if shape[-1] == 5 else balls()[..., 20] if len(shape) == 2 else balls()
    result = found(law.sample(x, seeded()), law.name)
    assert result.noise.correlation.is_white
    assert result.noise.correlation.kernel.ndim == len(shape)
    assert max(map(abs, result.neighbour_correlation)) < 0.1


# -- what is left out ----------------------------------------------------------------------------------


def test_padding_is_left_out() -> None:
    y = Gaussian(10.0).sample(balls(), seeded())
    valid = torch.ones_like(y, dtype=torch.bool)
    valid[:24] = False
    without = found(y, "gaussian", valid)
    y[:24] = 1e6 * torch.rand((24, 64, 64), generator=seeded(3))
    with_padding = found(y, "gaussian", valid)
    assert with_padding.noise.law.parameters == without.noise.law.parameters
    assert with_padding.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)


def test_clipped_air_is_left_out() -> None:
    """Half of the volume is air whose noise was cut off at zero: its variance is not the noise's."""
    x = balls().clone()
    x[:32] = 0
    y = Gaussian(10.0).sample(x, seeded()).clamp_min(0)
    assert found(y, "gaussian").noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)


def test_air_without_noise_is_left_out() -> None:
    x = balls().clone()
    x[:32] = 0
    law = Poisson(2.0)
    y = law.sample(x, seeded()) * torch.linspace(0.99, 1.01, 64)
    assert found(y, "poisson").noise.law.parameters["gain"] == pytest.approx(2, rel=0.1)


def test_rician_air_is_left_out() -> None:
    """The magnitude of noise alone has 0.66 of its SD."""
    x = balls().clone()
    x[:40] = 0
    real, imaginary = (10 * torch.randn(x.shape, generator=seeded(seed)) for seed in (1, 2))
    y = ((x + real) ** 2 + imaginary**2).sqrt()
    assert found(y, "gaussian", magnitude=True).noise.law.parameters["sigma"] == pytest.approx(10, rel=0.1)


def test_thin_slices_and_thick_ones() -> None:
    y = Gaussian(10.0).sample(balls()[:, :, ::4], seeded())
    result = estimate(y, torch.ones_like(y, dtype=torch.bool), (1.0, 1.0, 4.0), "gaussian")
    assert result.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)


def test_one_slice() -> None:
    result = found(Gaussian(10.0).sample(balls()[..., 30], seeded()), "gaussian")
    assert result.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.12)
    assert len(result.neighbour_correlation) == 2


@pytest.mark.parametrize("law", [None, "gaussian", "poisson", "gamma", "tweedie"])
@pytest.mark.parametrize("what", ["small", "constant", "padding", "line"])
def test_too_little_to_tell(law: str | None, what: str) -> None:
    shape = {"small": (6, 6, 6), "line": (1, 1, 30)}.get(what, (24, 24, 24))
    y = torch.full(shape, 9.0) if what == "constant" else Poisson(1.0).sample(torch.full(shape, 9.0), seeded())
    valid = torch.zeros(shape, dtype=torch.bool)
    if what != "padding":
        valid[:] = True
    else:
        valid[:5, :5, :5] = True
    with pytest.raises(InputError, match=r"are needed to estimate its level\. Give the level .*--sigma"):
        found(y, law, valid)


# -- parts ---------------------------------------------------------------------------------------------


def test_the_same_scan_gives_the_same_estimate() -> None:
    y = Gamma(50.0).sample(balls(), seeded())
    assert found(y).level_interval == found(y).level_interval


def test_mode() -> None:
    values = torch.cat((torch.randn(400, generator=seeded()) * 0.1 + 2, 10 * torch.rand(300, generator=seeded())))
    assert float(mode(values)) == pytest.approx(2, abs=0.1)


def test_lattices() -> None:
    counts = torch.poisson(torch.full((1000,), 6.0), generator=seeded())
    assert quantum_of(3 * counts, Poisson(3.0)) == pytest.approx(3, rel=1e-6)
    assert quantum_of(3 * counts + 0.02 * torch.rand(1000, generator=seeded()), Poisson(3.0)) > 0
    assert quantum_of(3 * counts + 3 * torch.rand(1000, generator=seeded()), Poisson(3.0)) == 0
    assert quantum_of(3 * counts, Poisson(4.0)) == 0
    assert quantum_of(3 * counts, Gaussian(3.0)) == 0
    assert quantum_of(torch.tensor([0.0, 3.0]), Poisson(3.0)) == 0
