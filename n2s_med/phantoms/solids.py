"""Signed distances of simple solids, in mm (negative inside), and painting them without jagged edges.

``points`` is (3, …): one coordinate tensor, in mm, along each axis. The distances are exact for tubes and
boxes, first-order for ellipsoids and level sets: right at the surface, where painting needs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from n2s_med.phantoms.grids import Grid, steepness


def ellipsoid(points: Tensor, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
    """Return k0 (k0 − 1) / k1 with k0 = |p/r|, k1 = |p/r²|; an infinite radius makes it a cylinder."""
    scaled = [(points[d] - centre[d]) / radii[d] for d in range(3)]
    k0 = _norm(scaled)
    k1 = _norm([s / r for s, r in zip(scaled, radii, strict=True)])
    return torch.where(k1 > 0, k0 * (k0 - 1) / k1.clamp_min(1e-12), -min(radii))


def box(points: Tensor, centre: Sequence[float], half_sides: Sequence[float]) -> Tensor:
    """Return the distance to a box along the axes."""
    beyond = [(points[d] - centre[d]).abs() - half_sides[d] for d in range(3)]
    outside = _norm([b.clamp_min(0) for b in beyond])
    return outside + torch.maximum(torch.maximum(beyond[0], beyond[1]), beyond[2]).clamp_max(0)


def tube(points: Tensor, start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> Tensor:
    """Return the distance to a round-ended tube whose radius goes evenly from one end to the other."""
    along = [b - a for a, b in zip(start, end, strict=True)]
    length2 = max(sum(a * a for a in along), 1e-12)
    rel = [points[d] - start[d] for d in range(3)]
    t = ((rel[0] * along[0] + rel[1] * along[1] + rel[2] * along[2]) / length2).clamp(0, 1)
    radius = radii[0] + t * (radii[1] - radii[0])
    return _norm([r - t * a for r, a in zip(rel, along, strict=True)]) - radius


def sheet(grid: Grid, field: Tensor) -> Tensor:
    """Return field / |∇ field|: the first-order distance to its zero level set."""
    return field / steepness(grid, field)


def filament(grid: Grid, first: Tensor, second: Tensor) -> Tensor:
    """Return the distance to the lines where two fields both vanish: winding threads that never end."""
    return (sheet(grid, first).square() + sheet(grid, second).square()).sqrt()


def rotated(points: Tensor, rotation: Tensor) -> Tensor:
    """Return ``rotation`` (3, 3) applied to points (3, …)."""
    return (rotation.to(points) @ points.flatten(1)).view(points.shape)


def paint(image: Tensor, distance: Tensor, value: Tensor | float, softness: float = 1.0) -> Tensor:
    """Return the image with ``value`` laid over it inside a solid.

    Coverage falls from 1 to 0 across ``softness`` mm about the surface, as it does for a plane that crosses
    voxels of that size.
    """
    cover = (0.5 - distance / softness).clamp(0, 1)
    return image + cover * (value - image)


def _norm(parts: Sequence[Tensor]) -> Tensor:
    return (parts[0].square() + parts[1].square() + parts[2].square()).sqrt()
