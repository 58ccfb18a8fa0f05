"""The sampling grid of a phantom, random fields on it and Gaussian blur.

Every length is in millimetres; every field is (X, Y, Z), float32, and lies on the grid's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv1d

Triple = tuple[float, float, float]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Grid:
    """Voxel centres of a volume whose middle is the origin.

    Attributes
    ----------
    shape
        Voxels along (X, Y, Z).
    step
        Distance of voxel centres along (X, Y, Z), in mm.
    device
        Where tensors on this grid are made.
    """

    shape: tuple[int, int, int]
    step: Triple = (1.0, 1.0, 1.0)
    device: torch.device = CPU

    @property
    def extent(self) -> Triple:
        """Length of each side, in mm."""
        x, y, z = (n * h for n, h in zip(self.shape, self.step, strict=True))
        return x, y, z

    def axis(self, dim: int) -> Tensor:
        """Return the voxel centres along one axis, in mm, shape (n,)."""
        n = self.shape[dim]
        return (torch.arange(n, device=self.device) - (n - 1) / 2) * self.step[dim]

    def points(self) -> Tensor:
        """Return the voxel centres as a tensor (3, X, Y, Z), in mm."""
        return torch.stack(torch.meshgrid(*(self.axis(d) for d in range(3)), indexing="ij"))

    def block(self, centre: Sequence[float], reach: float) -> tuple[slice, slice, slice]:
        """Return the slices that hold every voxel within ``reach`` mm of ``centre``, perhaps empty."""

        def along(dim: int) -> slice:
            n, h = self.shape[dim], self.step[dim]
            middle, half = centre[dim] / h + (n - 1) / 2, reach / h
            return slice(max(0, math.floor(middle - half)), max(0, min(n, math.ceil(middle + half) + 1)))

        return along(0), along(1), along(2)


@lru_cache(maxsize=4)
def _frequency(grid: Grid) -> Tensor:
    """Return the spatial frequency of each coefficient of ``rfftn``, in cycles per mm."""
    *full, last = zip(grid.shape, grid.step, strict=True)
    axes = [torch.fft.fftfreq(n, h, device=grid.device) for n, h in full]
    axes.append(torch.fft.rfftfreq(last[0], last[1], device=grid.device))
    kx, ky, kz = torch.meshgrid(*axes, indexing="ij")
    return (kx * kx + ky * ky + kz * kz).sqrt()


def _shaped_noise(grid: Grid, generator: torch.Generator, amplitude: Tensor) -> Tensor:
    """Return periodic Gaussian noise whose spectrum has this amplitude; zero mean, unit variance."""
    white = torch.randn(grid.shape, generator=generator, device=grid.device)
    field = torch.fft.irfftn(torch.fft.rfftn(white) * amplitude, s=grid.shape)
    return _standardised(field)


def _standardised(field: Tensor) -> Tensor:
    field = field - field.mean()
    return field / field.square().mean().sqrt().clamp_min(1e-12)


def power_law_field(grid: Grid, generator: torch.Generator, slope: float) -> Tensor:
    """Return a 1/f texture of unit variance: power spectrum |k|^-slope.

    Slope 0 is white, 2 to 3 looks like parenchyma, 4 like clouds: sharp surfaces in 3D fall as |k|^-4 too
    (Porod's law).
    """
    k = _frequency(grid)
    return _shaped_noise(grid, generator, (k + 0.5 / max(grid.extent)) ** (-slope / 2))


def band_field(grid: Grid, generator: torch.Generator, wavelength: float, octaves: float = 0.35) -> Tensor:
    """Return noise of one scale: a log-normal band of ``octaves`` about ``wavelength`` mm.

    Its level sets are sheets about half a wavelength apart, winding like cortical folds.
    """
    distance = torch.log2((_frequency(grid) * wavelength).clamp_min(1e-6)) / octaves
    return _shaped_noise(grid, generator, torch.exp(-0.5 * distance.square()))


def smooth_field(grid: Grid, generator: torch.Generator, wavelength: float) -> Tensor:
    """Return aperiodic noise smooth over about ``wavelength`` mm, unit variance in expectation.

    Gaussian bumps of random height on a lattice of half the wavelength, summed by one matrix per axis:
    the cost does not depend on the wavelength, which may exceed the volume.
    """
    weights = [_bumps(grid, dim, wavelength / 2) for dim in range(3)]
    heights = torch.randn([w.shape[1] for w in weights], generator=generator, device=grid.device)
    return torch.einsum("abc,xa,yb,zc->xyz", heights, *weights)


def _bumps(grid: Grid, dim: int, pitch: float) -> Tensor:
    """Return the weight (n, nodes) of each lattice node at each voxel, of unit norm over the nodes."""
    half = math.ceil(grid.extent[dim] / 2 / pitch) + 2
    nodes = torch.arange(-half, half + 1, device=grid.device) * pitch
    offset = (grid.axis(dim)[:, None] - nodes) / pitch
    weights = torch.exp(-offset.square())
    return weights / weights.square().sum(1, keepdim=True).sqrt()


def steepness(grid: Grid, field: Tensor) -> Tensor:
    """Return |∇ field| per mm, by central differences, never 0."""
    wide = [dim for dim in range(3) if grid.shape[dim] > 1]
    slopes = torch.gradient(field, spacing=[grid.step[d] for d in wide], dim=wide) if wide else ()
    return sum((s.square() for s in slopes), torch.full_like(field, 1e-6)).sqrt()


def gaussian_blur(volume: Tensor, sigma: Sequence[float]) -> Tensor:
    """Blur (X, Y, Z) by a Gaussian of ``sigma`` voxels per axis, cut at 4 sigma, edges repeated."""
    for dim, width in enumerate(sigma):
        if width > 0 and volume.shape[dim] > 1:
            volume = _blur_axis(volume, dim, width)
    return volume


def _blur_axis(volume: Tensor, dim: int, sigma: float) -> Tensor:
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=volume.device, dtype=volume.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    lines = volume.movedim(dim, -1)
    flat = lines.reshape(-1, 1, lines.shape[-1])
    ends = flat[..., :1].expand(-1, -1, reach), flat[..., -1:].expand(-1, -1, reach)
    blurred = conv1d(torch.cat([ends[0], flat, ends[1]], -1), (kernel / kernel.sum()).view(1, 1, -1))
    return blurred.view(lines.shape).movedim(-1, dim)
