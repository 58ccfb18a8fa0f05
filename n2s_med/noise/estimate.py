"""The noise of a scan from the scan alone: law, level, variation, correlation, and how well they fit.

:mod:`n2s_med.noise.blocks` cuts blocks, :mod:`n2s_med.noise.spectrum` measures the noise's spectrum on flat ones
and the variance in each. The exponent of the variance function comes from a robust line through the levels at
each intensity, in logarithms; the level is where the flat blocks' variances over that function gather; and
:mod:`n2s_med.noise.variation` finds how it varies over the volume. Intervals are from resampled regions, with
the scatter between intensities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError
from n2s_med.noise import LAWS
from n2s_med.noise.blocks import FEWEST_BLOCKS, FINE_EDGE, blocks_of, require_enough
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.curve import NO_POWER, Curve, misfits, power_of
from n2s_med.noise.lattice import LOOKED_AT, lattice_near, quantum_of
from n2s_med.noise.level import level_of
from n2s_med.noise.points import Points
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.spectrum import noise_spectrum
from n2s_med.noise.usable import darkest_shade, flat_for, shades, usable
from n2s_med.noise.values import data, has_negative, some_places
from n2s_med.noise.variation import Variation, variation_of

WHITE_BELOW = 0.12
"""Noise whose neighbours correlate less than this is treated as white."""

POOR_FIT = 0.25
"""RMS deviation of log variance from the law above which the fit is called poor (about 25 %)."""


@dataclass(frozen=True)
class Estimate:
    """What the scan says of its noise.

    Attributes
    ----------
    noise
        Law with its level (a map where it varies), and correlation.
    level_interval
        95 % interval of the level over the level itself, such as (0.97, 1.03); of a law whose exponent is measured
        too, that of the variance at the mean intensity.
    power, power_interval
        Exponent of the variance function measured on the scan, and its 95 % interval; NaN where the scan admits no
        such function (negative intensities).
    power_told
        Whether flat blocks of several intensities tell the exponent. Else its interval is all that the variances of
        the other blocks, which are upper bounds, leave.
    misfit
        For each law that the scan admits, the RMS deviation of log variance from it over the intensities.
    neighbour_correlation
        Correlation of the noise of neighbouring voxels along each axis.
    blocks
        Number of flat blocks behind the figures.
    rough
        Whether no part of the scan is flat: the level is an upper bound then, and the law is not told.
    variation
        5th and 95th percentile over the volume of the noise's standard deviation, relative to the median, where
        it varies in space; else ``None``.
    white_share
        Standard deviation of white noise as strong as the noise found is at its weakest frequency, over that of the
        noise found.
    """

    noise: ScanNoise
    level_interval: tuple[float, float]
    power: float
    power_interval: tuple[float, float]
    power_told: bool
    misfit: Mapping[str, float]
    neighbour_correlation: tuple[float, ...]
    blocks: int
    rough: bool
    variation: tuple[float, float] | None = None
    white_share: float = 1.0

    @property
    def fits(self) -> bool:
        """Whether the law describes how the variance depends on the intensity."""
        return self.misfit[self.noise.law.name] <= POOR_FIT

    @property
    def better_law(self) -> str | None:
        """The law that fits clearly better than a poor one, if there is one."""
        best = min(self.misfit, key=self.misfit.__getitem__)
        return None if self.fits or self.misfit[best] > 0.8 * self.misfit[self.noise.law.name] else best

    def of_texture(self) -> Estimate:
        """The same where texture passed for flat: the level is not told, and as much as is sure to be noise is taken.

        Texture has its power at low frequencies; at the weakest one, the noise has no more than was measured there.
        So white noise of that power is taken, and what was found is an upper bound.
        """
        most = self.level_interval[1] / self.white_share
        law, white = self.noise.law.scaled(self.white_share), Correlation.white(self.noise.correlation.kernel.ndim)
        return replace(self, noise=replace(self.noise, law=law, correlation=white), level_interval=(0.0, most))


def estimate(
    y: Tensor,
    valid: Tensor,
    spacing_mm: Sequence[float],
    law: str | None = None,
    *,
    magnitude: bool = False,
    seed: int = 0,
) -> Estimate:
    """Estimate the noise of a volume.

    Parameters
    ----------
    y
        Noisy volume (X, Y, Z) or (X, Y), in its own units.
    valid
        Boolean volume; False is padding.
    spacing_mm
        Voxel spacing along each axis.
    law
        Law whose level is wanted; ``None`` takes the one that fits best.
    magnitude
        The volume is MR magnitude: leave out where it is Rician.
    seed
        Seed of the choice of blocks and of the resampling.

    Raises
    ------
    InputError
        If there are too few blocks with noise: the volume is small, padded, clipped or constant.
    ConfigurationError
        If there is no such law.
    """
    if law is not None and law not in LAWS:
        raise ConfigurationError(f"unknown noise law {law!r}", remedy=f"choose one of {', '.join(LAWS)}")
    generator = torch.Generator().manual_seed(seed)
    values = data(y, valid)
    blocks = blocks_of(y, valid, values, spacing_mm, generator)
    require_enough(len(blocks))
    signed = has_negative(values)
    spectrum = noise_spectrum(blocks, signed)
    points = usable(blocks, spectrum.power, magnitude)
    finer = points
    if not signed and Curve.of(shades(points)).has_few_shades:
        small = blocks_of(y, valid, values, spacing_mm, generator, FINE_EDGE)
        if len(small) >= FEWEST_BLOCKS:
            finer = usable(small, noise_spectrum(small, signed).power, magnitude)
    variation = _variation(points, finer, signed, tuple(y.shape), blocks.shape, seed)
    if not variation.is_constant:  # as if the noise were the same everywhere: not on its quietest places alone
        alone = finer is points
        spectrum = noise_spectrum(blocks.less(variation), signed)
        points = usable(blocks, spectrum.power, magnitude)
        finer = points if alone else finer
    power = NO_POWER if signed else power_of(finer, variation, blocks.shape, generator)
    misfit = misfits(finer, power, variation)
    chosen = law or min(misfit, key=misfit.__getitem__)
    level = level_of(points, chosen, power, variation, blocks.shape, generator, float(values.mean()))
    found, level_interval, spread = level.law(chosen), level.interval(chosen), level.spread
    some = y[some_places(valid, LOOKED_AT)]
    if found.quantum and (width := lattice_near(some, found.quantum)):
        found, level_interval, spread = LAWS[chosen].of_dispersion(found.variance_power, width), (1.0, 1.0), None
    correlation, neighbours = _correlation(spectrum.correlation, blocks.shape)
    if points.rough:
        level_interval = (0.0, level_interval[1])
    quantum = quantum_of(some, found)
    floor = -math.inf if found.variance_power == 0 or quantum else darkest_shade(points)
    return Estimate(
        noise=ScanNoise(found, correlation, quantum, floor),
        level_interval=level_interval,
        power=power.value,
        power_interval=power.interval,
        power_told=power.told,
        misfit=misfit | ({chosen: misfit.get(chosen, math.inf)}),
        neighbour_correlation=neighbours,
        blocks=level.blocks,
        rough=points.rough,
        variation=spread,
        white_share=float(spectrum.power.min()) ** 0.5,
    )


def _variation(
    points: Points, finer: Points, signed: bool, shape: tuple[int, ...], edges: Sequence[int], seed: int
) -> Variation:
    """How the level varies in space beyond what a power of the intensity explains."""
    if signed:
        return variation_of(flat_for(points, 0.0), 0.0, shape, edges, seed)
    curve = Curve.of(shades(finer))
    found = variation_of(flat_for(curve.telling(points), curve.power), curve.power, shape, edges, seed)
    if found.is_constant:
        return found
    curve = Curve.of(shades(finer.less(found)))
    again = {found.intervals: (0,) * len(shape)}
    return variation_of(flat_for(curve.telling(points), curve.power), curve.power, shape, edges, seed, again)


def _correlation(found: Correlation, edges: Sequence[int]) -> tuple[Correlation, tuple[float, ...]]:
    """The correlation found on blocks, or none where it is next to none, and that of neighbours along each axis."""
    neighbours = tuple(lag if n > 1 else 0.0 for lag, n in zip(found.neighbours, edges, strict=True))
    white = max(map(abs, neighbours)) < WHITE_BELOW
    return Correlation.white(len(edges)) if white else found, neighbours
