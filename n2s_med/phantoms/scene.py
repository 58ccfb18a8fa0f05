"""What every generated scene draws from: one generator, a grid, warped coordinates, textures, materials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from n2s_med.phantoms.grids import Grid, power_law_field, smooth_field
from n2s_med.phantoms.solids import ellipsoid, paint, tube

T = TypeVar("T")
Block = tuple[slice, slice, slice]


@dataclass
class Dice:
    """Random choices, all from one :class:`torch.Generator`."""

    generator: torch.Generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw from U(low, high)."""
        draw = torch.rand((), generator=self.generator, device=self.generator.device).item()
        return low + (high - low) * draw

    def log_uniform(self, low: float, high: float) -> float:
        """Draw a positive number, each octave equally likely."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        """Say yes with this probability."""
        return self.uniform() < probability

    def between(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return min(high, low + int(self.uniform() * (high - low + 1)))

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[self.between(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        """Draw a standard normal tensor."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def direction(self) -> Tensor:
        """Draw a unit vector (3,) on the CPU."""
        return normalize(self.normal(3).cpu(), dim=0)

    def rotation(self) -> Tensor:
        """Draw a rotation, perhaps with a reflection, (3, 3)."""
        q, r = torch.linalg.qr(self.normal(3, 3).cpu())
        rotation: Tensor = q * torch.sign(torch.diagonal(r))
        return rotation


@dataclass
class Scene:
    """One volume in the making: where it is, what it is made of, and dice.

    Lengths are in mm; one in-plane voxel is 1 mm by convention, so a millimetre reads as a voxel.
    """

    grid: Grid
    dice: Dice
    warp: float = 1.0
    grain: float = 0.02
    softness: float = 1.0

    @property
    def size(self) -> float:
        """Longest side of the volume, in mm."""
        return max(self.grid.extent)

    @cached_property
    def points(self) -> Tensor:
        """Coordinates (3, X, Y, Z) bent by a smooth random displacement, so that no solid is perfect."""
        points = self.grid.points()
        wavelength = self.dice.log_uniform(14, 90)
        amplitude = self.warp * self.dice.uniform(0, 0.11) * wavelength
        for dim in range(3):
            points[dim] += amplitude * self.smooth(wavelength)
        return points

    @cached_property
    def textures(self) -> list[Tensor]:
        """Two unit-variance 1/f textures of different slope, shared by the materials of the scene."""
        slopes = self.dice.uniform(1.6, 3), self.dice.uniform(2.8, 4.2)
        return [power_law_field(self.grid, self.dice.generator, s) for s in slopes]

    def smooth(self, wavelength: float) -> Tensor:
        """Return a smooth random field (X, Y, Z)."""
        return smooth_field(self.grid, self.dice.generator, wavelength)

    def place(self, spread: float = 0.5) -> tuple[float, float, float]:
        """Draw a point within ``spread`` of each side's length about the middle."""
        x, y, z = (self.dice.uniform(-spread, spread) * side for side in self.grid.extent)
        return x, y, z

    def material(self, mean: float, grain: float = 1.0, block: Block | None = None) -> Tensor:
        """Return values about ``mean`` with this multiple of the scene's grain, over the block or all."""
        amplitude = self.grain * grain * self.dice.log_uniform(0.2, 1.8)
        texture = self.dice.pick(self.textures)
        return mean + amplitude * (texture if block is None else texture[block])

    def paint(self, image: Tensor, distance: Tensor, value: Tensor | float) -> Tensor:
        """Lay a value over the inside of a solid, with the scene's edge softness."""
        return paint(image, distance, value, self.softness)

    def paint_ellipsoid(
        self, image: Tensor, centre: Sequence[float], radii: Sequence[float], value: Tensor | float
    ) -> None:
        """Paint a small ellipsoid in place, touching only the block that can hold it."""
        block = self.block(centre, max(radii))
        if image[block].numel():
            inside = ellipsoid(self.points[(slice(None), *block)], centre, radii)
            image[block] = self.paint(image[block], inside, _cut(value, block))

    def paint_tube(
        self,
        image: Tensor,
        start: Sequence[float],
        end: Sequence[float],
        radii: tuple[float, float],
        value: Tensor | float,
    ) -> None:
        """Paint a tapering tube in place, touching only the block that can hold it."""
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        block = self.block(middle, math.dist(start, end) / 2 + max(radii))
        if image[block].numel():
            inside = tube(self.points[(slice(None), *block)], start, end, radii)
            image[block] = self.paint(image[block], inside, _cut(value, block))

    def block(self, centre: Sequence[float], reach: float) -> Block:
        """Return the block that holds a solid in the bent coordinates."""
        return self.grid.block(centre, reach + self.bend + self.softness)

    @cached_property
    def bend(self) -> float:
        """Largest displacement of the bent coordinates, in mm."""
        return float((self.points - self.grid.points()).abs().amax())


def grow_tree(
    scene: Scene,
    image: Tensor,
    value: Tensor | float,
    *,
    root: Sequence[float],
    direction: Tensor,
    radius: float,
    segments: int = 90,
) -> None:
    """Paint a branching vessel in place: winding tubes that thin out and fork.

    At a fork the radii obey Murray's law, r³ = r₁³ + r₂³ (Proc. Natl. Acad. Sci. 12 (1926) 207).
    """
    dice, tips = scene.dice, [(torch.tensor([float(c) for c in root]), direction, radius)]
    reach = 0.6 * math.hypot(*scene.grid.extent)
    for _ in range(segments):
        if not tips:
            return
        start, heading, r = tips.pop(0)
        heading = normalize(heading + 0.35 * dice.direction(), dim=0)
        end = start + heading * r * dice.uniform(2, 5) + heading
        scene.paint_tube(image, start.tolist(), end.tolist(), (r, 0.97 * r), value)
        if float(end.norm()) < reach and r > 0.3:
            tips.extend(_forks(dice, end, heading, 0.97 * r))


def _forks(dice: Dice, end: Tensor, heading: Tensor, r: float) -> list[tuple[Tensor, Tensor, float]]:
    if dice.chance(0.6):
        return [(end, heading, r)]
    share = dice.uniform(0.15, 0.85)
    sideways = 0.7 * dice.direction()
    return [
        (end, heading + share * sideways, r * (1 - share) ** (1 / 3)),
        (end, heading - (1 - share) * sideways, r * share ** (1 / 3)),
    ]


def _cut(value: Tensor | float, block: Block) -> Tensor | float:
    return value[block] if isinstance(value, Tensor) else value
