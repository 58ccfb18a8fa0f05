"""A PET phantom after the body phantom of NEMA NU 2-2018, section 7: spheres in a warm, elliptical body.

Unlike the real one, its outline is an ellipse, its spheres have no walls and its lung insert takes up a
little. Positions are in mm about the middle of the volume, which is DICOM's patient origin
in :func:`n2s_med.phantoms.write_pet_series`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from n2s_med.phantoms.grids import Grid, Triple, gaussian_blur

BACKGROUND_BQML = 5000.0
RESOLUTION_FWHM_MM = 6.0
BODY_SEMI_AXES_MM = (150.0, 115.0)
BODY_HALF_LENGTH_MM = 80.0
LUNG_RADIUS_MM = 22.0
LUNG_CONTRAST = 0.2
SPHERE_RING_MM = 57.2
SPHERES = (  # diameter in mm, contrast to the background
    (10.0, 4.0),
    (13.0, 4.0),
    (17.0, 4.0),
    (22.0, 4.0),
    (28.0, 0.0),
    (37.0, 0.0),
)
_MARGIN_MM = 10.0
_SIGMA_PER_FWHM = 1 / math.sqrt(8 * math.log(2))


@dataclass(frozen=True)
class Sphere:
    """One sphere; contrast is its activity over the background's, so 0 is cold.

    Attributes
    ----------
    name
        Such as ``"hot 22 mm"``.
    centre_mm
        Centre (x, y, z) from the middle of the volume.
    radius_mm
        Radius.
    contrast
        Activity in the sphere over activity of the warm background.
    """

    name: str
    centre_mm: Triple
    radius_mm: float
    contrast: float


@dataclass(frozen=True, eq=False)
class PetPhantom:
    """Truth of the phantom on one voxel grid; every tensor has shape (X, Y, Z) but for the spheres' axis.

    Attributes
    ----------
    activity
        What a noiseless scanner sees: the object blurred by its resolution; float32, Bq/mL.
    object_activity
        The object itself, voxels averaged over their volume; float32, Bq/mL.
    spacing_mm
        Voxel size along (X, Y, Z).
    spheres
        From the smallest to the largest.
    sphere_masks
        (6, X, Y, Z) bool: voxels whose centre lies in the sphere, as NEMA's regions of interest.
    sphere_cores
        (6, X, Y, Z) bool: the same less half the resolution's width at the rim; never empty.
    background
        bool: warm voxels at least 10 mm from any edge in the object, free of spill-over.
    """

    activity: Tensor
    object_activity: Tensor
    spacing_mm: Triple
    spheres: tuple[Sphere, ...]
    sphere_masks: Tensor
    sphere_cores: Tensor
    background: Tensor


def pet_phantom(shape: tuple[int, int, int] = (96, 96, 48), spacing_mm: Triple = (4.0, 4.0, 4.0)) -> PetPhantom:
    """Return the phantom: 5 kBq/mL, four hot spheres at 4 : 1, two cold ones, a lung insert; air is 0.

    Parameters
    ----------
    shape
        Voxels along (X, Y, Z).
    spacing_mm
        Voxel size along (X, Y, Z).

    Raises
    ------
    ValueError
        If the field of view, shape times spacing, cuts the ring of spheres.
    """
    grid = Grid(shape, spacing_mm)
    if min(spacing_mm) <= 0 or any(e < n for e, n in zip(grid.extent, (156, 156, 40), strict=True)):
        raise ValueError(
            f"shape {shape} at spacing_mm {spacing_mm} does not hold the spheres: "
            "make each side of the volume at least (156, 156, 40) mm"
        )
    spheres, points = _spheres(), grid.points()
    true = _object(grid, spheres)
    return PetPhantom(
        activity=_seen(true, spacing_mm),
        object_activity=true,
        spacing_mm=spacing_mm,
        spheres=spheres,
        sphere_masks=torch.stack([_in_ball(points, s.centre_mm, s.radius_mm) for s in spheres]),
        sphere_cores=torch.stack([_core(grid, s) for s in spheres]),
        background=_background(grid, spheres),
    )


def _spheres() -> tuple[Sphere, ...]:
    """Return the six spheres, 60 degrees apart about the lung insert, in the middle plane."""
    return tuple(
        Sphere(
            f"{'hot' if contrast > 1 else 'cold'} {diameter:.0f} mm",
            (SPHERE_RING_MM * math.cos(i * math.pi / 3), SPHERE_RING_MM * math.sin(i * math.pi / 3), 0.0),
            diameter / 2,
            contrast,
        )
        for i, (diameter, contrast) in enumerate(SPHERES)
    )


def _object(grid: Grid, spheres: tuple[Sphere, ...]) -> Tensor:
    """Return the activity before any blur, each voxel the mean over its volume."""
    x, y, z = (slice(0, n) for n in grid.shape)
    one = slice(0, 1)
    ellipse = _coverage(grid, (x, y, one), lambda p: _in_ellipse(p, 0.0))
    lung = _coverage(grid, (x, y, one), lambda p: p[0].hypot(p[1]) <= LUNG_RADIUS_MM)
    length = _coverage(grid, (one, one, z), lambda p: p[2].abs() <= BODY_HALF_LENGTH_MM)
    value = (ellipse - (1 - LUNG_CONTRAST) * lung) * length
    for sphere in spheres:
        block = grid.block(sphere.centre_mm, sphere.radius_mm + max(grid.step))
        share = _coverage(grid, block, partial(_in_ball, centre=sphere.centre_mm, radius=sphere.radius_mm))
        value[block] += (sphere.contrast - 1) * share
    return BACKGROUND_BQML * value.clamp_min(0)


def _coverage(
    grid: Grid, block: tuple[slice, slice, slice], inside: Callable[[Tensor], Tensor], finer: int = 8
) -> Tensor:
    """Return the share of the finer³ points in each voxel of the block that lie inside."""
    offset = (torch.arange(finer) + 0.5) / finer - 0.5
    axes = [(grid.axis(d)[s, None] + grid.step[d] * offset).flatten() for d, s in enumerate(block)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    share: Tensor = avg_pool3d(inside(points).float()[None], finer)[0]
    return share


def _in_ball(points: Tensor, centre: Triple, radius: float) -> Tensor:
    squared: Tensor = (points - torch.tensor(centre).view(3, 1, 1, 1)).square().sum(0)
    return squared <= radius**2


def _in_ellipse(points: Tensor, margin: float) -> Tensor:
    a, b = (side - margin for side in BODY_SEMI_AXES_MM)
    return (points[0] / a).square() + (points[1] / b).square() <= 1


def _seen(true: Tensor, spacing_mm: Triple) -> Tensor:
    """Return the object blurred by the scanner's Gaussian resolution; air beyond 4 SD stays exactly 0."""
    return gaussian_blur(true, [RESOLUTION_FWHM_MM * _SIGMA_PER_FWHM / h for h in spacing_mm])


def _core(grid: Grid, sphere: Sphere) -> Tensor:
    """Return the sphere less its blurred rim; at least the voxels nearest to the centre."""
    distance: Tensor = (grid.points() - torch.tensor(sphere.centre_mm).view(3, 1, 1, 1)).norm(dim=0)
    radius = sphere.radius_mm - RESOLUTION_FWHM_MM / 2
    return distance <= max(radius, float(distance.min()) + 1e-3)


def _background(grid: Grid, spheres: tuple[Sphere, ...]) -> Tensor:
    """Return the warm voxels that lie a margin away from every edge."""
    points = grid.points()
    warm = _in_ellipse(points, _MARGIN_MM) & (points[2].abs() <= BODY_HALF_LENGTH_MM - _MARGIN_MM)
    warm &= points[0].hypot(points[1]) >= LUNG_RADIUS_MM + _MARGIN_MM
    for sphere in spheres:
        warm &= ~_in_ball(points, sphere.centre_mm, sphere.radius_mm + _MARGIN_MM)
    return warm
