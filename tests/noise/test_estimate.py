"""The noise of a scan from the scan alone, against scans whose noise is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson, Tweedie
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import WHITE_BELOW, Estimate, estimate
from n2s_med.noise.lattice import quantum_of
from n2s_med.noise.points import mode
from n2s_med.phantoms import brain_phantom, ct_phantom, pet_phantom
from n2s_med.volumes import read

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


@pytest.mark.parametrize("law", [Gaussian(10.0), Gamma(50.0)], ids=str)
def test_intervals_hold_the_truth(law: NoiseModel) -> None:
    """In at least six of eight scans: of 95 % intervals, fewer cover in one of three hundred such runs."""
    (true,), covered = law.parameters.values(), 0
    for seed in range(8):
        result = found(law.sample(balls(48), seeded(seed)), law.name)
        (level,) = result.noise.law.parameters.values()
        low, high = result.level_interval
        assert 0.8 < low < 1 < high < 1.25
        covered += low * level <= true <= high * level
    assert covered >= 6


def test_the_interval_holds_the_scatter_between_intensities() -> None:
    """Noise that differs from shade to shade, as no law has it, leaves its level open."""
    shade = torch.randint(6, (4, 4, 4), generator=seeded()).float()
    for axis in range(3):
        shade = shade.repeat_interleave(16, axis)
    even = found(Gaussian(10.0).sample(100 * shade - 200, seeded()), "gaussian")
    uneven = found(Gaussian(10 * 1.5 ** (shade % 2)).sample(100 * shade - 200, seeded()), "gaussian")
    widths = [high - low for low, high in (even.level_interval, uneven.level_interval)]
    assert widths[1] > 1.5 * widths[0]


PHANTOMS: dict[str, tuple[Callable[[], Tensor], NoiseModel, float]] = {
    "ct": (lambda: ct_phantom((96, 72, 58)), Gaussian(25.0), 0.05),
    "mr": (lambda: 1000 * brain(), Gaussian(30.0), 0.05),
    "pet": (lambda: pet_phantom((64, 64, 32), (5.0, 5.0, 5.0)).activity, Poisson(50.0), 0.001),
    "pet, few counts": (lambda: pet_phantom((64, 64, 32), (5.0, 5.0, 5.0)).activity, Poisson(1000.0), 0.001),
    "us": (lambda: 10 + 1000 * brain(), Gamma(50.0), 0.1),
}


@pytest.mark.parametrize("name", PHANTOMS)
def test_levels_of_phantoms(name: str) -> None:
    make, law, tolerance = PHANTOMS[name]
    (level,) = law.parameters.values()
    (measured,) = found(law.sample(make(), seeded()), law.name).noise.law.parameters.values()
    assert measured == pytest.approx(level, rel=tolerance)


@pytest.mark.parametrize("sigma", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("width", [None, 0.8])
def test_sharp_volume_with_little_noise(sigma: float, width: float | None) -> None:
    """A sharp MR in 0..255: the level to 2 %, white or correlated, though texture then has the noise's own spectrum."""
    x = 255 * brain()
    correlation = kernel(width) if width else Correlation.white()
    result = found(x + sigma * correlation.color(torch.randn(x.shape, generator=seeded(3))), "gaussian")
    assert result.noise.law.parameters["sigma"] == pytest.approx(sigma, rel=0.02)
    assert result.neighbour_correlation == pytest.approx(correlation.neighbours, abs=0.03)


def test_power_on_few_shades_of_small_organs() -> None:
    """Most of a PET phantom is one shade: small blocks find the others."""
    x = pet_phantom((96, 96, 48), (4.0, 4.0, 4.0)).activity.clamp_min(1e-6)
    for law in (Tweedie(1.3, 8.0), Tweedie(1.7, 0.3)):
        assert found(law.sample(x, seeded(3)), "tweedie").power == pytest.approx(law.variance_power, abs=0.15)


def test_structure_tells_no_exponent() -> None:
    """The inside of the sharp brain is texture: the interval of the exponent, and that of the level, hold the truth."""
    x, law = 0.02 + 0.98 * brain() / brain().max(), Tweedie(1.5, 0.01)
    y = law.sample(x, seeded(3))
    result = found(y, "tweedie")
    assert not result.power_told
    assert result.power_interval[0] <= law.variance_power <= result.power_interval[1] < 2
    ratio = float(result.noise.law.variance(y.mean()) / law.variance(y.mean()))
    assert result.level_interval[0] * ratio < 1 < result.level_interval[1] * ratio
    assert result.fits


def test_most_shades_may_hold_structure() -> None:
    """A trunk with correlated noise: edges of its organs pass for flat at half of the intensities."""
    hounsfield = ct_phantom()
    x = 0.02 + 0.98 * (hounsfield - hounsfield.min()) / (hounsfield.max() - hounsfield.min())
    law = Tweedie(1.7, 0.02)
    noise = law.variance(x).sqrt() * soft().color(torch.randn(x.shape, generator=seeded(1)))
    result = found((x + noise).clamp_min(1e-6), "tweedie")
    assert result.power_told
    assert result.power == pytest.approx(1.7, abs=0.1)
    assert float(result.noise.law.variance(x.mean()) / law.variance(x.mean())) == pytest.approx(1, abs=0.15)
    assert result.fits


def soft() -> Correlation:
    """Neighbours along every axis correlate by 0.58."""
    line = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * 0.7**2))
    return Correlation.from_kernel(torch.einsum("i,j,k->ijk", line, line, line))


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


def test_one_flat_shade_tells_no_exponent() -> None:
    """Rough everywhere but in the dark: the interval holds every law, and none is called a better one."""
    x = 50 + 200 * torch.rand(balls().shape, generator=seeded(7))
    x[:40] = 20
    result = found(Gaussian(3.0).sample(x, seeded()), "gaussian")
    assert result.power_interval == (0.0, 2.0)
    assert result.better_law is None


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
    assert result.neighbour_correlation == pytest.approx(wanted, abs=0.05)
    assert not result.noise.correlation.is_white
    measured = [result.noise.correlation.autocorrelation(lag) for lag in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert measured == pytest.approx(wanted, abs=0.05)
    assert result.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("law", [Gaussian(10.0), Poisson(1.0), Gamma(50.0)], ids=str)
@pytest.mark.parametrize("shape", [(64, 64, 64), (64, 64, 5), (64, 64)], ids=str)
def test_white_is_called_white(law: NoiseModel, shape: tuple[int, ...]) -> None:
    x = balls()[..., :5] if shape[-1] == 5 else balls()[..., 20] if len(shape) == 2 else balls()
    result = found(law.sample(x, seeded()), law.name)
    assert result.noise.correlation.is_white
    assert result.noise.correlation.kernel.ndim == len(shape)
    assert max(map(abs, result.neighbour_correlation)) < WHITE_BELOW


def test_whitened_noise_of_flat_regions_is_white() -> None:
    """Divided in frequency by the transfer function found; the true one has no zero."""
    true = kernel(0.5)
    noise = 10 * true.color(torch.randn(balls().shape, generator=seeded()))
    correlation = found(balls() - 150 + noise, "gaussian").noise.correlation
    response = torch.fft.fftn(correlation.color(_impulse(noise.shape))).real
    white = torch.fft.ifftn(torch.fft.fftn(noise) / response).real
    for axis in range(3):
        lagged = (white * white.roll(1, axis)).mean() / white.square().mean()
        assert abs(float(lagged)) < 0.03


def _impulse(shape: tuple[int, ...]) -> Tensor:
    out = torch.zeros(shape)
    out[(0,) * len(shape)] = 1
    return out


# -- variation in space --------------------------------------------------------------------------------


def growing(shape: tuple[int, ...]) -> Tensor:
    """From 1/sqrt(3) to sqrt(3) along the first axis."""
    along = torch.linspace(3**-0.5, 3**0.5, shape[0])
    return along.view(-1, *(1,) * (len(shape) - 1)).expand(shape)


def domed(shape: tuple[int, ...]) -> Tensor:
    """Four times as much in the middle of the slices as in their corners."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return 0.4 + 1.6 * torch.exp(-1.5 * (axes[0] ** 2 + axes[1] ** 2))


def hollow(shape: tuple[int, ...]) -> Tensor:
    """Three times as much in the corners of the slices as in their middle, where too stiff a map has too much."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return 0.5 + (axes[0] ** 2 + axes[1] ** 2) / 2


def plates() -> Tensor:
    """A large single slice, of flat squares with soft edges."""
    squares = balls()[::8, ::8, 32].repeat_interleave(40, 0).repeat_interleave(40, 1) - 150
    return torch.nn.functional.avg_pool2d(squares[None, None], 3, 1, 1)[0, 0]


@pytest.mark.parametrize(
    ("of", "field"),
    [("balls", growing), ("balls", domed), ("brain", growing), ("brain", hollow), ("slice", growing), ("slice", domed)],
)
def test_a_varying_level_is_mapped(of: str, field: Callable[[tuple[int, ...]], Tensor]) -> None:
    """Where there are flat blocks: the inside of the sharp brain has none to show the dome."""
    x = {"balls": balls() - 150, "brain": 255 * brain(), "slice": plates()}[of]
    sigma = 10 * field(tuple(x.shape))
    result = found(Gaussian(sigma).sample(x, seeded(3)), "gaussian")
    assert result.variation is not None
    law = result.noise.law
    assert isinstance(law, Gaussian)
    assert isinstance(law.sigma, Tensor)
    off = (law.sigma / sigma).log().abs().flatten()
    assert float(off[::7].quantile(0.9)) < 0.1
    assert law.parameters["sigma"] == pytest.approx(float(sigma.median()), rel=0.03)


@pytest.mark.parametrize(("law", "level"), [(Tweedie(1.5, 0.2), "dispersion"), (Gamma(50.0), "k")], ids=str)
def test_a_varying_level_of_other_laws(law: NoiseModel, level: str) -> None:
    """The dispersion varies with the square of the standard deviation."""
    field = growing(tuple(balls().shape))
    y = (balls() + field * (law.sample(balls(), seeded(3)) - balls())).clamp_min(1.0)
    result = found(y, law.name)
    assert result.variation is not None
    varying = law.variance(balls()) * field**2
    off = (result.noise.law.variance(balls()) / varying).log().abs().flatten() / 2
    assert float(off[::7].quantile(0.9)) < 0.12
    assert isinstance(getattr(result.noise.law, level), Tensor)
    assert result.power == pytest.approx(law.variance_power, abs=0.3)


@pytest.mark.parametrize("law", [Gaussian(10.0), Poisson(1.0), Gamma(50.0), Tweedie(1.5, 0.2)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_constant_level_is_no_map(law: NoiseModel, seed: int) -> None:
    result = found(law.sample(balls(), seeded(seed)) * torch.linspace(0.99, 1.01, 64), law.name)
    assert result.variation is None
    assert not any(isinstance(getattr(result.noise.law, name), Tensor) for name in result.noise.law.parameters)


def test_structure_is_no_map() -> None:
    for sigma in (5.0, 25.0):
        assert found(Gaussian(sigma).sample(255 * brain(), seeded(3)), "gaussian").variation is None


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
    assert found(y, "gaussian", magnitude=True).noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)
    assert found(y, "gaussian").noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)  # told by its skewness


def test_quiet_air_counts_where_it_is_not_cut_off() -> None:
    """A sharp CT shows its noise in the air alone; a textured body must not outvote it."""
    x = balls() - 1000
    x[:40] = -1000
    x[40:] += 60 * torch.randn(x[40:].shape, generator=seeded(7))
    y = Gaussian(3.0).sample(x, seeded())
    assert found(y, "gaussian").noise.law.parameters["sigma"] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("scan", "least", "most"),
    [("ct/dicom_philips_ingenuity_phantom_5mm", 1.0, 3.5), ("nifti_small/totalsegmentator", 9.0, 13.0)],
)
def test_real_ct(real_data: Path, scan: str, least: float, most: float) -> None:
    """By hand: 1.2 HU in air and 2.2 to 2.9 HU in plastic; 6 HU in smoothed air and 11 HU in muscle."""
    volume = read(real_data / scan).volumes[0]
    y = volume[0].as_tensor()
    result = estimate(y, torch.ones_like(y, dtype=torch.bool), volume.meta["spacing_mm"], "gaussian")
    assert least < result.noise.law.parameters["sigma"] < most


def test_real_mr(real_data: Path) -> None:
    """Siemens T2 of a thigh: its k-space has noise alone at high frequencies, of 10 to 15 units whatever the tissue.

    It is empty beyond a quarter of a cycle along the second axis, which correlates neighbours by about 2/π; bright fat
    and muscle are texture, not noise.
    """
    volume = read(real_data / "mr/dicom_siemens_avanto_t2_sts001").volumes[0]
    y = volume.as_tensor()[0]
    result = estimate(y, torch.ones_like(y, dtype=torch.bool), volume.meta["spacing_mm"], "gaussian", magnitude=True)
    assert result.fits
    assert 9 < result.noise.law.parameters["sigma"] < 16  # of a map its median
    assert result.neighbour_correlation == pytest.approx([0.1, 2 / math.pi, 0], abs=0.12)


def test_air_below_the_shades_measured_is_left_as_it_is() -> None:
    """Its own noise reaches up to a hundredth of the bright end; a floor within it would cut that noise in two."""
    x = balls().clone()
    x[:20] = 0.5
    result = found(Tweedie(1.7, 0.2).sample(x, seeded()), "tweedie")
    air = Tweedie(1.7, 0.2).sample(x, seeded())[:20]
    assert float(air.quantile(0.99)) < result.noise.floor < 10


def test_thin_slices_and_thick_ones() -> None:
    y = Gaussian(10.0).sample(balls()[:, :, ::4], seeded())
    result = estimate(y, torch.ones_like(y, dtype=torch.bool), (1.0, 1.0, 4.0), "gaussian")
    assert result.noise.law.parameters["sigma"] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("slices", [2, 3])
def test_thick_slices_that_overlap_and_drift(share: float, slices: int) -> None:
    """Slices take in a share of the next one, and their levels drift by a noise SD: the one is noise, the other not."""
    kernel = torch.einsum("i,j,k->ijk", torch.tensor([0.5, 1, 0.5]), torch.tensor([0.5, 1, 0.5]), torch.ones(1))
    white = torch.randn((96, 96, 41), generator=seeded())
    noise = Correlation.from_kernel(kernel).color(white[..., :-1] + share * white[..., 1:]) / (1 + share**2) ** 0.5
    x = torch.full_like(noise, 100.0)
    x[30:60, 40:70] = 400
    y = x + 10 * noise + 10 * torch.randn(40, generator=seeded(1))
    result = estimate(y, torch.ones_like(y, dtype=torch.bool), (1.0, 1.0, 8 / slices), "gaussian")
    assert result.neighbour_correlation == pytest.approx([2 / 3, 2 / 3, share / (1 + share**2)], abs=0.08)
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


def test_where_no_block_is_flat_the_least_rough_give_an_upper_bound() -> None:
    x, y, z = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), torch.arange(10.0), indexing="ij")
    ramp = Gaussian(3.0).sample(100 * x + 70 * y + 90 * z, seeded())
    result = estimate(ramp, torch.ones_like(ramp, dtype=torch.bool), (0.5, 0.5, 5.0), "gaussian")
    assert result.variation is None
    assert 3.0 < result.noise.law.parameters["sigma"] < float(ramp.std())
    assert result.rough
    assert result.better_law is None
    assert result.level_interval[0] == 0
    assert result.level_interval[1] > 1


def test_white_noise_under_texture() -> None:
    """What passes for flat is texture, of low frequencies: the noise is no stronger than the highest ones."""
    smooth = Correlation.from_kernel(torch.einsum("i,j,k->ijk", *(torch.hann_window(9)[1:],) * 3)[:7, :7, :7])
    texture = 40 * smooth.color(torch.randn((64, 64, 64), generator=seeded(3)))
    y = Gaussian(5.0).sample(500 + texture, seeded())
    upper = found(y, "gaussian")
    assert upper.noise.law.parameters["sigma"] > 30
    result = upper.of_texture()
    assert result.noise.correlation.is_white
    sigma = result.noise.law.parameters["sigma"]
    assert sigma == pytest.approx(5, rel=0.3)
    low, high = result.level_interval
    assert low * sigma < 5 < high * sigma
    assert high * sigma == pytest.approx(upper.level_interval[1] * upper.noise.law.parameters["sigma"])


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
