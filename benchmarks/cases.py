"""What is denoised: clean volumes, and the noise of each column of the table."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from n2s_med.noise import Gamma, Gaussian, NoiseModel, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.phantoms import brain_phantom, ct_phantom, pet_phantom

FLOOR = 0.02
"""Least clean value: Gamma and Poisson noise need a signal above zero."""

BRIGHTEST = 0.999
"""Quantile of a volume from a file that becomes 1; what is brighter is clipped."""

CORRELATION_SD = 0.7
"""Standard deviation, in voxels, of the Gaussian kernel that correlates the noise."""


@dataclass(frozen=True)
class Volume:
    """A clean volume (X, Y, Z) with values from 0.02 to 1, and its voxel spacing."""

    name: str
    x: Tensor
    spacing_mm: tuple[float, ...]

    def cropped(self, edge: int) -> Volume:
        """The centre, at most ``edge`` voxels along each axis."""
        middle = tuple(slice((n - min(n, edge)) // 2, (n + min(n, edge)) // 2) for n in self.x.shape)
        return Volume(self.name, self.x[middle].clone(), self.spacing_mm)


def phantom(name: str) -> Volume:
    """One of the built-in anatomies."""
    if name == "brain":
        return Volume("brain phantom", brain_phantom(), (2.0, 2.0, 2.0))
    if name == "fine-brain":
        return Volume("fine brain phantom", brain_phantom((120, 144, 120)), (4 / 3, 4 / 3, 4 / 3))
    if name == "ct":
        hounsfield = ct_phantom()
        return Volume("CT phantom", scaled(hounsfield, hounsfield.max()), (400 / 128, 300 / 96, 240 / 77))
    pet = pet_phantom()
    return Volume("PET phantom", scaled(pet.activity, pet.activity.max()), pet.spacing_mm)


def from_file(path: Path) -> Volume:
    """A clean NIfTI volume, named by its file."""
    image = nib.load(path)
    x = torch.tensor(image.get_fdata(), dtype=torch.float32)
    bright = x.flatten()[:: 1 + x.numel() // 1_000_000].quantile(BRIGHTEST)
    spacing = tuple(float(z) for z in image.header.get_zooms()[:3])
    return Volume(path.name, scaled(x, bright), spacing)


def scaled(x: Tensor, top: Tensor) -> Tensor:
    """``x`` mapped linearly, its least value to 0.02 and ``top`` to 1, and clipped there."""
    return FLOOR + (1 - FLOOR) * ((x - x.min()) / (top - x.min())).clamp(0, 1)


@dataclass(frozen=True)
class Column:
    """One kind of noise."""

    title: str
    law: NoiseModel
    correlation: Correlation
    quantum: float = 0.0
    varies: bool = False

    def noise_of(self, x: Tensor) -> ScanNoise:
        """All there is to know of the noise of a volume."""
        law = _varying(x, self.law.parameters["sigma"]) if self.varies else self.law
        return ScanNoise(law, self.correlation, self.quantum)


def sample(x: Tensor, noise: ScanNoise, generator: torch.Generator) -> Tensor:
    """Draw a noisy volume."""
    if noise.correlation.is_white:
        return noise.law.sample(x, generator)
    white = torch.randn(x.shape, generator=generator)
    return x + noise.law.variance(x).sqrt() * noise.correlation.color(white)


def _gaussian_kernel() -> Correlation:
    line = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * CORRELATION_SD**2))
    return Correlation.from_kernel(torch.einsum("i,j,k->ijk", line, line, line))


def _varying(x: Tensor, sigma: float) -> Gaussian:
    """Noise that grows from 0.5 ``sigma`` in the middle to 1.5 at the sides, as in parallel MR."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x.shape[:2]), indexing="ij")
    distance = torch.stack(axes).square().sum(0) / 2
    return Gaussian((sigma * (0.5 + distance))[..., None].expand(x.shape))


WHITE = Correlation.white()
COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "g10": Column("G σ=10", Gaussian(10 / 255), WHITE),
        "g25": Column("G σ=25", Gaussian(25 / 255), WHITE),
        "g50": Column("G σ=50", Gaussian(50 / 255), WHITE),
        "p01": Column("Poisson .01", Poisson(0.01), WHITE, 0.01),
        "p05": Column("Poisson .05", Poisson(0.05), WHITE, 0.05),
        "k100": Column("Gamma 100", Gamma(100.0), WHITE),
        "k50": Column("Gamma 50", Gamma(50.0), WHITE),
        "c25": Column("correlated 25", Gaussian(25 / 255), _gaussian_kernel()),
        "v25": Column("varying 25", Gaussian(25 / 255), WHITE, varies=True),
    }
)


@dataclass(frozen=True)
class Scan:
    """What an arm is given.

    Attributes
    ----------
    y
        Noisy volume (X, Y, Z).
    noise
        Its noise, as the arm is told.
    spacing_mm
        Voxel spacing.
    seed
        Seed of everything random in the arm.
    clean
        The truth, for the arms that declare that they use it; ``None`` for all others.
    """

    y: Tensor
    noise: ScanNoise
    spacing_mm: tuple[float, ...]
    seed: int
    clean: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """Voxels that the law can have produced."""
        return self.noise.admits(self.y)

    @property
    def truth(self) -> Tensor:
        """The clean volume; an arm that did not declare its use fails here."""
        assert self.clean is not None, "this arm did not declare that it uses the clean volume"
        return self.clean


def scan_of(volume: Volume, column: str, seed: int) -> Scan:
    """The noisy volume of one column and seed, with its truth."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + zlib.crc32(column.encode()))
    noise = COLUMNS[column].noise_of(volume.x)
    return Scan(sample(volume.x, noise, generator), noise, volume.spacing_mm, seed, volume.x)


def save_scan(folder: Path, volume: Volume, column: str, seed: int) -> None:
    """Write :func:`scan_of` to a NumPy archive that needs nothing of this package to be read."""
    scan = scan_of(volume, column, seed)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{volume.name.replace(' ', '-')}_{column}_{seed}.npz",
        y=scan.y.numpy(),
        clean=volume.x.numpy(),
        volume=volume.name,
        column=column,
        title=COLUMNS[column].title,
        seed=seed,
        law=scan.noise.law.name,
        **{f"law_{name}": value for name, value in scan.noise.law.parameters.items()},
    )
