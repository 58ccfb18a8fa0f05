"""Correlated noise against the definition of a convolution with a symmetric kernel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from laws import close, seeded
from torch import Tensor

from n2s_med.errors import NoiseLawError
from n2s_med.noise import Gamma, Gaussian, Poisson
from n2s_med.noise.correlation import Correlation, cosines
from n2s_med.noise.scan import ScanNoise

AXIS_KERNELS = {
    1: torch.tensor([1.0]),
    3: torch.tensor([0.5, 1.0, 0.5]),
    5: torch.tensor([0.1, 0.6, 1, 0.6, 0.1]),
}


def separable(*sizes: int) -> Correlation:
    kernel = torch.ones(())
    for size in sizes:
        kernel = kernel[..., None] * AXIS_KERNELS[size]
    return Correlation.from_kernel(kernel)


def by_definition(correlation: Correlation, white: Tensor) -> Tensor:
    """Periodic convolution, one shifted copy per entry of the kernel."""
    colored = torch.zeros_like(white)
    axes = tuple(range(white.ndim))
    for index in itertools.product(*(range(n) for n in correlation.kernel.shape)):
        shift = tuple(i - n // 2 for i, n in zip(index, correlation.kernel.shape, strict=True))
        colored = colored + correlation.kernel[index] * white.roll(shift, axes)
    return colored


@pytest.fixture
def anisotropic() -> Correlation:
    return separable(5, 3, 1)


def test_color_is_the_convolution(anisotropic: Correlation) -> None:
    white = torch.randn(9, 8, 7, generator=seeded())
    close(anisotropic.color(white), by_definition(anisotropic, white), rtol=1e-4, atol=1e-5)


def test_color_of_batches_is_color_of_each(anisotropic: Correlation) -> None:
    batch = torch.randn(2, 1, 9, 8, 7, generator=seeded())
    close(anisotropic.color(batch)[1, 0], anisotropic.color(batch[1, 0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(5, 3, 1), (3, 3, 3), (5, 5)])
def test_voxels_keep_unit_variance(sizes: tuple[int, ...]) -> None:
    white = torch.randn(40_000 // 8 ** (len(sizes) - 1), *(8,) * len(sizes), generator=seeded())
    assert float(separable(*sizes).color(white).var()) == pytest.approx(1, abs=0.02)


def test_autocorrelation_is_the_samples(anisotropic: Correlation) -> None:
    noise = anisotropic.color(torch.randn(200, 16, 16, 16, generator=seeded()))
    for lag in ((0, 0, 0), (1, 0, 0), (0, -1, 0), (2, 1, 0), (-3, 2, 0), (0, 0, 1), (5, 0, 0), (0, 0, 4)):
        sample = (noise * noise.roll(lag, (1, 2, 3))).mean()
        assert anisotropic.autocorrelation(lag) == pytest.approx(float(sample), abs=0.01)
    assert anisotropic.autocorrelation((0, 0, 0)) == pytest.approx(1)
    assert anisotropic.autocorrelation((9, 0, 0)) == 0


@pytest.mark.parametrize("edges", [(8, 6, 4), (5, 5, 2)], ids=str)
def test_power_of_blocks_is_the_samples(anisotropic: Correlation, edges: tuple[int, ...]) -> None:
    """By cosines of blocks cut from a larger volume; together they hold the variance of every voxel."""
    noise = anisotropic.color(torch.randn(3000, 12, 12, 12, generator=seeded())).double()
    spectrum = noise[(..., *(slice(0, n) for n in edges))]
    for axis, size in enumerate(edges, start=1):
        spectrum = torch.movedim(torch.tensordot(spectrum, cosines(size), ([axis], [1])), -1, axis)
    power = anisotropic.block_power(edges)
    close(power / spectrum.square().mean(0), torch.ones(edges, dtype=torch.float64), rtol=0.15, atol=0)
    assert float(power.sum()) == pytest.approx(math.prod(edges), rel=1e-5)


def test_operator_is_symmetric(anisotropic: Correlation) -> None:
    """``<L v, w> = <v, L w>``, on which perturbing and unbending by the same L rests."""
    v, w = torch.randn(2, 9, 8, 7, generator=seeded()).double()
    assert float((anisotropic.color(v) * w).sum()) == pytest.approx(float((v * anisotropic.color(w)).sum()), abs=1e-4)


def test_lopsided_kernels_are_made_even() -> None:
    kernel = torch.rand(5, 3, generator=seeded())
    even = Correlation.from_kernel(kernel).kernel
    close(even, even.flip(0))
    close(even, even.flip(1))
    assert float(even.square().sum()) == pytest.approx(1)


def test_permuted_goes_with_the_volume(anisotropic: Correlation) -> None:
    white, order = torch.randn(9, 8, 7, generator=seeded()), (2, 0, 1)
    close(
        anisotropic.permuted(order).color(white.permute(order)),
        anisotropic.color(white).permute(order),
        rtol=1e-4,
        atol=1e-5,
    )
    assert anisotropic.radius == (2, 1, 0)
    assert anisotropic.permuted(order).radius == (0, 2, 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_white_does_nothing(dims: int) -> None:
    white, correlation = torch.randn((6,) * dims, generator=seeded()), Correlation.white(dims)
    assert correlation.is_white
    assert torch.equal(correlation.color(white), white)
    assert correlation.radius == (0,) * dims
    assert correlation.autocorrelation((0,) * dims) == 1
    assert correlation.autocorrelation((1,) + (0,) * (dims - 1)) == 0


def test_a_padded_white_kernel_is_white_too() -> None:
    """Σ = σ²I by the long way: a kernel of one voxel with zeros around it."""
    kernel = torch.zeros(5, 5, 5)
    kernel[2, 2, 2] = 3.0
    white = torch.randn(7, 7, 7, generator=seeded())
    close(Correlation.from_kernel(kernel).color(white), white, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (1, 8, 4)])
def test_volumes_smaller_than_the_kernel(shape: tuple[int, ...]) -> None:
    correlation = separable(5, 5, 3)
    white = torch.randn(shape, generator=seeded())
    colored = correlation.color(white)
    assert colored.shape == shape
    assert torch.isfinite(colored).all()
    v = torch.randn(shape, generator=seeded(1))
    assert float((colored * v).sum()) == pytest.approx(float((white * correlation.color(v)).sum()), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (1, 8, 4)])
def test_unit_variance_in_volumes_smaller_than_the_kernel(shape: tuple[int, ...]) -> None:
    white = torch.randn(20_000, *shape, generator=seeded())
    assert float(separable(5, 5, 3).color(white).var()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_number_type_is_kept(dtype: torch.dtype, anisotropic: Correlation) -> None:
    assert anisotropic.color(torch.ones(8, 8, 8, dtype=dtype)).dtype == dtype


# -- from a noise power spectrum -----------------------------------------------------------------------


def power_of(correlation: Correlation, size: int) -> Tensor:
    """Power of one axis at ``j / (2 size)`` cycles per voxel, from the autocorrelation (Wiener–Khinchin)."""
    lags = range(-len(correlation.kernel), len(correlation.kernel) + 1)
    return torch.tensor(
        [sum(correlation.autocorrelation((h,)) * math.cos(math.pi * h * j / size) for h in lags) for j in range(size)]
    )


@pytest.mark.parametrize("size", [1, 2, 8, 16])
def test_flat_power_is_white(size: int) -> None:
    correlation = Correlation.from_power(torch.full((size, size), 7.0))
    assert correlation.autocorrelation((0, 0)) == pytest.approx(1)
    for lag in ((1, 0), (0, 1), (1, 1), (2, 0)):
        assert correlation.autocorrelation(lag) == pytest.approx(0, abs=1e-4)


def test_power_goes_in_and_comes_out() -> None:
    wanted = separable(5)
    got = Correlation.from_power(power_of(wanted, 16))
    for lag in range(6):
        assert got.autocorrelation((lag,)) == pytest.approx(wanted.autocorrelation((lag,)), abs=0.02)
    close(power_of(got, 16), power_of(wanted, 16), atol=0.05, rtol=0)


def test_power_of_an_anisotropic_scan() -> None:
    """Resolution differs in the plane and across slices; each axis keeps its own correlation."""
    one, other = separable(5), separable(3)
    power = power_of(one, 12)[:, None] * power_of(other, 8)
    got = Correlation.from_power(power)
    assert got.autocorrelation((1, 0)) == pytest.approx(one.autocorrelation((1,)), abs=0.03)
    assert got.autocorrelation((0, 1)) == pytest.approx(other.autocorrelation((1,)), abs=0.03)
    assert not got.is_white


def test_negative_power_of_a_poor_estimate_counts_as_none() -> None:
    power = torch.ones(8)
    power[-2:] = torch.tensor([-0.1, -0.2])
    clean = power.clamp_min(0)
    close(Correlation.from_power(power).kernel, Correlation.from_power(clean).kernel)


def test_a_spike_of_a_noisy_spectrum_makes_no_endless_ripple() -> None:
    """The kernel fades towards its ends, where a measured spectrum has nothing to say."""
    power = torch.ones(16)
    power[3] = 50.0
    kernel = Correlation.from_power(power).kernel
    assert float(kernel[:2].abs().max()) < 0.03 * float(kernel.max())


@pytest.mark.parametrize(
    ("kernel", "message"),
    [(torch.full((2, 2), 0.5), r"odd sizes, got \(2, 2\)"), (torch.ones(3), "unit sum of squares")],
)
def test_refuses_kernels_that_are_none(kernel: Tensor, message: str) -> None:
    with pytest.raises(NoiseLawError, match=message):
        Correlation(kernel)


# -- the noise of a scan -------------------------------------------------------------------------------


def test_values_without_a_lattice_stay() -> None:
    y = torch.rand(50, generator=seeded())
    assert ScanNoise(Gaussian(1.0), Correlation.white(1)).dequantised(y, seeded()) is y


def test_dequantised_counts() -> None:
    """Spread over one cell, about the count, reproducibly, and inside the domain of the count's map."""
    noise = ScanNoise(Poisson(0.5), Correlation.white(1), quantum=0.5)
    y = 0.5 * torch.poisson(torch.full((100_000,), 3.0), generator=seeded())
    spread = noise.dequantised(y, seeded(1))
    moved = (spread - y) / 0.5
    assert float(moved.abs().max()) <= 0.5
    inside = y > 0
    assert float(moved[inside].mean()) == pytest.approx(0, abs=0.005)
    assert float(moved[inside].var()) == pytest.approx(1 / 12, abs=0.002)
    assert torch.isfinite(noise.law.to_unit(spread)).all()
    assert torch.equal(spread, noise.dequantised(y, seeded(1)))
    assert not torch.equal(spread, noise.dequantised(y, seeded(2)))


def test_variance_counts_the_lattice_and_signed_values() -> None:
    noise = ScanNoise(Poisson(2.0), Correlation.white(1), quantum=2.0)
    close(noise.variance(torch.tensor([-1.0, 0.0, 4.0])), torch.tensor([0.0, 0.0, 8.0]) + 4 / 12, rtol=1e-6)
    plain = ScanNoise(Gaussian(3.0), Correlation.white(1))
    close(plain.variance(torch.tensor([-5.0, 5.0])), torch.tensor([9.0, 9.0]))


@pytest.mark.parametrize("gain", [0.05, 1.0, 7.3, 1234.567])
def test_dequantised_counts_have_a_unit_value(gain: float) -> None:
    """At any gain: three eighths below zero, where the unit-noise map ends, rounding must not lead beyond it."""
    noise = ScanNoise(Poisson(gain), Correlation.white(1), quantum=gain)
    u = noise.law.to_unit(noise.dequantised(torch.zeros(100_000), seeded()))
    assert torch.isfinite(u).all()


def test_dequantised_variance_is_that_of_the_sample() -> None:
    noise = ScanNoise(Poisson(1.0), Correlation.white(1), quantum=1.0)
    x = torch.full((200_000,), 20.0)
    y = noise.dequantised(noise.law.sample(x, seeded()), seeded(1))
    assert float(y.var()) == pytest.approx(float(noise.variance(x)[0]), rel=0.02)


def test_air_is_not_admitted_but_nan_is_left_to_be_refused() -> None:
    y = torch.tensor([-1.0, 0.0, 2.0, 5.0, float("nan")])
    white = Correlation.white(1)
    assert ScanNoise(Gaussian(1.0), white).admits(y).all()
    assert ScanNoise(Gaussian(1.0), white, floor=2.0).admits(y).tolist() == [False, False, True, True, True]
    assert ScanNoise(Gamma(5.0), white).admits(y).tolist() == [True, False, True, True, True]
