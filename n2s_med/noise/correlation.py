"""Noise that is correlated between voxels: ``L = C^½``, the operator that colours white noise.

In the unit-noise domain the noise is ``L w`` with ``w`` white. ``L`` is stationary and symmetric, a small
convolution kernel that is even along each axis, so that ``L = Lᵀ`` and voxels keep unit variance.
(Xie et al., NeurIPS 2023, treat score matching with such noise.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from n2s_med.errors import NoiseLawError


@dataclass(frozen=True)
class Correlation:
    """Stationary noise correlation.

    Parameters
    ----------
    kernel
        Kernel of ``L``, odd along each axis, one axis per spatial axis, of unit sum of squares and even
        along each axis. Build it with :meth:`white`, :meth:`from_kernel` or :meth:`from_power`.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        if any(size % 2 == 0 for size in self.kernel.shape):
            raise NoiseLawError(f"a correlation kernel needs odd sizes, got {tuple(self.kernel.shape)}")
        if abs(float(self.kernel.double().square().sum()) - 1) > 1e-4:
            raise NoiseLawError("a correlation kernel needs a unit sum of squares")

    @classmethod
    def white(cls, spatial_dims: int = 3) -> Correlation:
        """No correlation."""
        return cls(torch.ones((1,) * spatial_dims))

    @classmethod
    def from_kernel(cls, kernel: Tensor) -> Correlation:
        """Symmetrise and normalise a kernel, such as the scanner's reconstruction filter."""
        even = kernel
        for axis in range(kernel.ndim):
            even = (even + even.flip(axis)) / 2
        return cls(even / even.square().sum().sqrt())

    @classmethod
    def from_power(cls, power: Tensor) -> Correlation:
        """Build ``L`` from a noise power spectrum.

        Parameters
        ----------
        power
            Power on a cosine grid: along an axis of ``n`` entries, entry ``j`` belongs to frequency
            ``j / (2 n)`` cycles per voxel, and the last stands for half a cycle too. Units do not matter.
        """
        kernel = power.clamp_min(0).sqrt()
        for axis, size in enumerate(power.shape):
            frequency = torch.arange(size, dtype=power.dtype)
            lag = torch.arange(-(size - 1), size, dtype=power.dtype)
            weight = torch.where(frequency > 0, 2.0, 1.0)
            basis = torch.cos(torch.pi * lag[:, None] * frequency / size) * weight
            basis[:, -1] += torch.cos(torch.pi * lag)  # the highest frequency, half a cycle per voxel
            taper = torch.cos(torch.pi * lag / (2 * size)) ** 2
            kernel = torch.movedim(torch.tensordot(taper[:, None] * basis, kernel, ([1], [axis])), 0, axis)
        return cls.from_kernel(kernel.float())

    @property
    def is_white(self) -> bool:
        """Whether the kernel is a single voxel."""
        return self.kernel.numel() == 1

    @property
    def radius(self) -> tuple[int, ...]:
        """Reach of the kernel along each axis, in voxels."""
        return tuple(size // 2 for size in self.kernel.shape)

    def color(self, white: Tensor) -> Tensor:
        """Apply ``L`` over the trailing spatial axes, periodic at the borders.

        Parameters
        ----------
        white
            Tensor of shape (..., X, Y[, Z]).
        """
        if self.is_white:
            return white
        axes = tuple(range(-self.kernel.ndim, 0))
        transfer = self._transfer(white.shape[-self.kernel.ndim :]).to(white.device)
        spectrum = torch.fft.rfftn(white.float(), dim=axes) * transfer
        colored: Tensor = torch.fft.irfftn(spectrum, s=white.shape[-self.kernel.ndim :], dim=axes)
        return colored.to(white.dtype)

    def _transfer(self, shape: Sequence[int]) -> Tensor:
        """Real frequency response on the half grid of ``rfftn`` for volumes of this shape.

        A kernel wider than the volume wraps onto itself; it is normalised again to keep unit variance.
        """
        folded = self.kernel
        for axis, size in enumerate(shape):
            lag = torch.arange(folded.shape[axis]) - folded.shape[axis] // 2
            target = list(folded.shape)
            target[axis] = size
            folded = torch.zeros(target, dtype=folded.dtype).index_add_(axis, lag % size, folded)
        spectrum: Tensor = torch.fft.rfftn(folded / folded.square().sum().sqrt().clamp_min(1e-6))
        return spectrum.real

    def autocorrelation(self, lag: Sequence[int]) -> float:
        """Correlation of the noise at two voxels ``lag`` apart."""
        if any(abs(h) >= size for h, size in zip(lag, self.kernel.shape, strict=True)):
            return 0.0
        here = tuple(slice(max(0, h), size + min(0, h)) for h, size in zip(lag, self.kernel.shape, strict=True))
        there = tuple(slice(max(0, -h), size + min(0, -h)) for h, size in zip(lag, self.kernel.shape, strict=True))
        return float((self.kernel[here] * self.kernel[there]).sum())

    def block_power(self, shape: Sequence[int]) -> Tensor:
        """Mean squares of the cosine coefficients of blocks of such noise, which sum to the number of voxels.

        Along an axis of ``n`` voxels the coefficient of frequency ``k`` has the variance
        ``Σ c_k(i) c_k(j) r(i - j)`` with the orthonormal cosines ``c_k``: linear in the autocorrelation ``r``.

        Parameters
        ----------
        shape
            Edges of a block.
        """
        whole = [size + n for size, n in zip(self.kernel.shape, shape, strict=True)]  # no lag in use wraps
        lagged = torch.fft.irfftn(torch.fft.rfftn(self.kernel.double(), s=whole).abs().square(), s=whole)
        power: Tensor = lagged[tuple(slice(0, n) for n in shape)]
        for axis, n in enumerate(shape):
            power = torch.tensordot(_lag_power(n), power, ([1], [axis])).movedim(0, axis)
        return power

    @property
    def neighbours(self) -> tuple[float, ...]:
        """Correlation of the noise of neighbouring voxels along each axis."""
        ndim = self.kernel.ndim
        return tuple(self.autocorrelation([int(a == axis) for a in range(ndim)]) for axis in range(ndim))

    @cached_property
    def traits(self) -> Tensor:
        """Correlation of the noise one and two voxels apart along each axis: what the network is told of it.

        Float32 of shape (2 axes,), one voxel first; zeros for white noise.
        """
        ndim = self.kernel.ndim
        lags = [[lag * int(a == axis) for a in range(ndim)] for lag in (1, 2) for axis in range(ndim)]
        return torch.tensor([self.autocorrelation(lag) for lag in lags])

    def permuted(self, axes: Sequence[int]) -> Correlation:
        """The correlation of a volume whose axes are permuted."""
        return Correlation(self.kernel.permute(*axes))


@cache
def _lag_power(size: int) -> Tensor:
    """Variance of each cosine coefficient by the covariance at each lag, either way, frequencies by lags."""
    basis = cosines(size)
    lagged = [basis[:, : size - lag] * basis[:, lag:] for lag in range(size)]
    return torch.stack([(2 if lag else 1) * product.sum(1) for lag, product in enumerate(lagged)], dim=1)


@cache
def cosines(size: int) -> Tensor:
    """Orthonormal DCT-II matrix in float64, frequencies by samples."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * k * (n + 0.5) / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
