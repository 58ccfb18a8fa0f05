"""MR magnitude at low signal: its Rician mean, and the amplitude behind a mean.

The magnitude of a complex signal of amplitude ``A`` with noise of standard deviation ``sigma`` in either part is
Rician (Gudbjartsson & Patz, Magn. Reson. Med. 1995). Denoising under the Gaussian law estimates its mean, which
lies above ``A`` where the signal is weak: by ``1.25 sigma`` in air, by ``0.17 sigma`` at ``A = 3 sigma``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from n2s_med.noise.base import Parameter

BRIGHT = 10.0
"""Means of so many sigma and more are inverted by their asymptote, exact there to 1e-3 sigma."""

HALVINGS = 40


def rician_mean(amplitude: Tensor, sigma: Parameter) -> Tensor:
    """Mean of the magnitude: ``sigma sqrt(π/2) L_½(-A²/(2 sigma²))`` (Koay & Basser, J. Magn. Reson. 2006, eq. 3).

    With ``t = A²/(2 sigma²)`` the Laguerre polynomial is ``exp(-t/2) [(1 + t) I₀(t/2) + t I₁(t/2)]``.

    Parameters
    ----------
    amplitude
        ``A``, not negative, in the units of the scan.
    sigma
        Noise of the real and of the imaginary part, same units; a scalar or a map.
    """
    t = (amplitude / sigma).square() / 2
    laguerre: Tensor = (1 + t) * torch.special.i0e(t / 2) + t * torch.special.i1e(t / 2)
    return math.sqrt(math.pi / 2) * sigma * laguerre


def rician_amplitude(mean: Tensor, sigma: Parameter) -> Tensor:
    """Amplitude of which the magnitude has this mean, 0 where the mean is that of noise alone or less.

    Inverts :func:`rician_mean` by bisection (it grows with the amplitude and lies above it), and by
    ``A = (m + sqrt(m² - 2 sigma²))/2``, from ``m = A + sigma²/(2 A)``, where the signal is strong.

    Parameters
    ----------
    mean
        Denoised magnitude in the units of the scan, any shape.
    sigma
        Noise of the real and of the imaginary part, same units; a scalar or a map.
    """
    ratio = mean / sigma
    dark = ratio < BRIGHT
    bright = ratio.clamp_min(BRIGHT)
    found = (bright + (bright.square() - 2).sqrt()) / 2
    found[dark] = _bisected(ratio[dark]).to(found.dtype)
    return found * sigma


def _bisected(ratio: Tensor) -> Tensor:
    """Amplitude over sigma for a mean over sigma."""
    wanted = ratio.double()
    low, high = torch.zeros_like(wanted), wanted.clamp_min(0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = rician_mean(middle, 1.0) > wanted
        low, high = low.where(above, middle), middle.where(above, high)
    return (low + high) / 2
