"""Which blocks the noise is measured on: without air, Rician magnitude, and what was cut off."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from n2s_med.noise.blocks import ENOUGH, Blocks
from n2s_med.noise.points import Points
from n2s_med.noise.spectrum import points_of

MAGNITUDE_SNR = 4.0
"""MR magnitude below this many noise SDs is Rician; such blocks are left out."""

SKEWED = 0.35
"""Mean skewness of flat blocks of like intensity from which they are not Gaussian: the magnitude of noise alone
has 0.63, noise cut off at zero 1.6."""

FEWEST_TO_TELL = 8
"""Flat blocks of like intensity without which their skewness is not looked at."""

AIR = 1e-3
"""Blocks below this share of the brightest are air and say nothing of the noise."""

SHADE = 1e-2
"""Those below this share say nothing of the exponent: the spill of what is brighter runs through them."""

LEAST_STRUCTURE = 0.1
"""Share of the blocks, those with the least structure, that are used where none is flat."""


def usable(blocks: Blocks, power: Tensor, magnitude: bool) -> Points:
    """The blocks without Rician ones; those with the least structure pass for flat where too few are."""
    points = points_of(blocks, power)
    if int(points.flat.sum()) < ENOUGH:
        count = min(len(points), max(ENOUGH, int(LEAST_STRUCTURE * len(points))))
        least = points.structure.sort().values[count - 1]
        points = replace(points, flat=points.structure <= least, rough=True)
    return _above_noise_floor(points) if magnitude else points


def _above_noise_floor(points: Points) -> Points:
    """Without the blocks in which magnitude is Rician, if enough are left."""
    for _ in range(2):
        noise_floor = float((points.where(points.flat).floor() / 2).exp())
        bright = points.where(points.mean > MAGNITUDE_SNR * noise_floor)
        if int(bright.flat.sum()) < ENOUGH:
            break
        points = bright
    return points


def symmetric(points: Points) -> Points:
    """Without the intensities at which the noise is skewed (cut off, or Rician), if enough are left."""
    even = [b for b in points.bins() if not _is_skewed(b)]
    return Points.joined(even) if sum(int(b.flat.sum()) for b in even) >= ENOUGH else points


def _is_skewed(points: Points) -> bool:
    """Whether the quietest of the flat blocks, of which structure has no part, are skewed."""
    flat = points.where(points.flat)
    if len(flat) < FEWEST_TO_TELL:
        return False
    quiet = flat.where(flat.log_variance <= flat.log_variance.median())
    return float(quiet.skewness.median().abs()) > SKEWED


def _not_air(points: Points) -> Points:
    return points.where(points.mean > _air(points))


def _air(points: Points) -> float:
    """Intensity below which there is air."""
    return AIR * max(float(points.mean.quantile(0.99)), 0.0)


def darkest_shade(points: Points) -> float:
    """Intensity from which the exponent is measured."""
    return SHADE / AIR * _air(points)


def shades(points: Points) -> list[Points]:
    """The intensities on which the exponent is measured."""
    return points.where(points.mean > darkest_shade(points)).log_bins()


def flat_for(points: Points, rho: float) -> Points:
    """The flat blocks that a law of this exponent is measured on."""
    used = _not_air(points) if rho else symmetric(points)
    return used.where(used.flat)
