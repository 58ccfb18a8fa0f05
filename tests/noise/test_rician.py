"""Rician mean and its inversion, against sampled magnitudes and known limits."""

from __future__ import annotations

import math

import pytest
import torch

from n2s_med.noise.rician import BRIGHT, rician_amplitude, rician_mean


def sampled(amplitude: float, sigma: float, count: int = 400_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    real, imaginary = (sigma * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(2))
    return ((amplitude + real) ** 2 + imaginary**2).sqrt()


@pytest.mark.parametrize("snr", [0.0, 0.5, 1.0, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("sigma", [1.0, 30.0])
def test_the_mean_is_that_of_samples(snr: float, sigma: float) -> None:
    mean = float(rician_mean(torch.tensor(snr * sigma, dtype=torch.float64), sigma))
    assert mean == pytest.approx(float(sampled(snr * sigma, sigma).mean()), abs=5e-3 * sigma)


def test_limits_of_the_mean() -> None:
    """Rayleigh's mean without signal; ``A + sigma²/(2 A)`` with a strong one."""
    assert float(rician_mean(torch.zeros((), dtype=torch.float64), 2.0)) == pytest.approx(2 * math.sqrt(math.pi / 2))
    strong = torch.tensor([50.0, 1e3, 1e5], dtype=torch.float64)
    torch.testing.assert_close(rician_mean(strong, 1.0), strong + 0.5 / strong, rtol=0, atol=2e-6)


def test_the_amplitude_comes_back() -> None:
    amplitude = torch.linspace(0.05, 30, 600, dtype=torch.float64)
    torch.testing.assert_close(rician_amplitude(rician_mean(amplitude, 1.0), 1.0), amplitude, rtol=0, atol=1e-3)
    torch.testing.assert_close(rician_amplitude(7 * rician_mean(amplitude, 1.0), 7.0), 7 * amplitude, rtol=0, atol=7e-3)


def test_noise_alone_has_no_amplitude() -> None:
    floor = math.sqrt(math.pi / 2)
    found = rician_amplitude(torch.tensor([-1.0, 0.0, 0.5, floor - 1e-3]), 1.0)
    assert float(found.max()) < 1e-3


def test_no_step_where_the_asymptote_begins() -> None:
    around = torch.tensor([BRIGHT - 1e-4, BRIGHT + 1e-4], dtype=torch.float64)
    below, above = rician_amplitude(around, 1.0)
    assert float(above - below) == pytest.approx(2e-4, abs=1e-3)


def test_a_map_of_sigma() -> None:
    sigma = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    amplitude = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(rician_amplitude(rician_mean(amplitude, sigma), sigma), amplitude, rtol=0, atol=1e-3)


@pytest.mark.parametrize("snr", [0.5, 1.0, 2.0])
def test_the_mean_of_many_repeats_is_corrected(snr: float) -> None:
    mean = sampled(snr, 1.0).mean()[None]
    assert float(mean) - snr > 0.2
    assert float(rician_amplitude(mean, 1.0)) == pytest.approx(snr, abs=0.03)
