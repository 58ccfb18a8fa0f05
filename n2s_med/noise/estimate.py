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

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import LAWS, NoiseModel
from n2s_med.noise.blocks import ENOUGH, FINE_EDGE, Blocks, blocks_of
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.lattice import lattice_near, quantum_of
from n2s_med.noise.points import STEEPEST, Points
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.spectrum import noise_spectrum, points_of
from n2s_med.noise.variation import Variation, fitted, variation_of

FEWEST_BLOCKS = 24
"""Blocks without which there is no estimate."""

BEYOND_CHANCE = 0.025
"""Standard error of a log variance beyond chance, by volumes of known noise: slopes within blocks, spectrum."""

RESAMPLES = 24
"""Bootstrap resamples behind an interval."""

REGION_BLOCKS = 2.0
"""Edge of the regions that are resampled, in block edges: blocks overlap, and structure is local."""

WHITE_BELOW = 0.12
"""Noise whose neighbours correlate less than this is treated as white."""

MAGNITUDE_SNR = 4.0
"""MR magnitude below this many noise SDs is Rician; such blocks are left out."""

SKEWED = 0.35
"""Mean skewness of flat blocks of like intensity from which they are not Gaussian: the magnitude of noise alone
has 0.63, noise cut off at zero 1.6."""

AIR = 1e-3
"""Blocks below this share of the brightest are air and say nothing of the noise."""

SHADE = 1e-2
"""Those below this share say nothing of the exponent: the spill of what is brighter runs through them."""

POOR_FIT = 0.25
"""RMS deviation of log variance from the law above which the fit is called poor (about 25 %)."""

FLAT_IN_BIN, FLAT_SHARE = 8, 0.1
FLAT_ERROR, ROUGH_ERROR = 0.05, 0.3
"""Flat blocks that an intensity bin's log variance rests on, and their share of the bin: fewer may be structure
that looks flat by chance. The bin's error then beyond chance, and that of bins with fewer."""

NARROW = 0.7
"""Range of log intensity (a factor of two) below which small blocks are looked at for other shades."""

BOUNDING = 3
"""Rounds in which the upper bounds that say nothing are found."""

LEAST_STRUCTURE = 0.1
"""Share of the blocks, those with the least structure, that are used where none is flat."""


@dataclass(frozen=True)
class Estimate:
    """What the scan says of its noise.

    Attributes
    ----------
    noise
        Law with its level (a map where it varies), and correlation.
    level_interval
        95 % interval of the level over the level itself, such as (0.97, 1.03).
    power, power_interval
        Exponent of the variance function measured on the scan, and its 95 % interval: all that laws admit where
        flat blocks span too few intensities; NaN where the scan admits no such function (negative intensities).
    misfit
        For each law that the scan admits, the RMS deviation of log variance from it over the intensities.
    neighbour_correlation
        Correlation of the noise of neighbouring voxels along each axis.
    blocks
        Number of flat blocks behind the figures.
    variation
        5th and 95th percentile over the volume of the noise's standard deviation, relative to the median, where
        it varies in space; else ``None``.
    """

    noise: ScanNoise
    level_interval: tuple[float, float]
    power: float
    power_interval: tuple[float, float]
    misfit: Mapping[str, float]
    neighbour_correlation: tuple[float, ...]
    blocks: int
    variation: tuple[float, float] | None = None

    @property
    def fits(self) -> bool:
        """Whether the law describes how the variance depends on the intensity."""
        return self.misfit[self.noise.law.name] <= POOR_FIT

    @property
    def better_law(self) -> str | None:
        """The law that fits clearly better than a poor one, if there is one."""
        best = min(self.misfit, key=self.misfit.__getitem__)
        return None if self.fits or self.misfit[best] > 0.8 * self.misfit[self.noise.law.name] else best


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
    blocks = blocks_of(y, valid, spacing_mm, generator)
    _require(len(blocks))
    signed = bool((y[valid] < 0).any())
    spectrum = noise_spectrum(blocks, signed)
    points = _usable(blocks, spectrum.power, magnitude)
    shades = points
    if not signed and _Curve.of(_shades(points)).is_narrow:
        small = blocks_of(y, valid, spacing_mm, generator, FINE_EDGE)
        if len(small) >= FEWEST_BLOCKS:
            shades = _usable(small, noise_spectrum(small, signed).power, magnitude)
    variation = _variation(points, shades, signed, tuple(y.shape), blocks.shape, seed)
    if not variation.is_constant:  # as if the noise were the same everywhere: not on its quietest places alone
        alone = shades is points
        spectrum = noise_spectrum(blocks.less(variation), signed)
        points = _usable(blocks, spectrum.power, magnitude)
        shades = points if alone else shades
    fits = _law_fits(shades, variation, signed)
    chosen = law or min(fits.misfit, key=fits.misfit.__getitem__)
    level = _level(points, chosen, fits.power, variation, blocks.shape, generator)
    found, level_interval, spread = level.law(chosen), level.interval(chosen), level.spread
    if found.quantum and (width := lattice_near(y[valid], found.quantum)):
        found, level_interval, spread = LAWS[chosen].of_dispersion(found.variance_power, width), (1.0, 1.0), None
    correlation, neighbours = _correlation(spectrum.correlation, blocks.shape)
    quantum = quantum_of(y[valid], found)
    floor = -math.inf if found.variance_power == 0 or quantum else _darkest_shade(points)
    return Estimate(
        noise=ScanNoise(found, correlation, quantum, floor),
        level_interval=level_interval,
        power=fits.power,
        power_interval=(math.nan, math.nan) if signed else _power_interval(shades, variation, blocks.shape, generator),
        misfit=fits.misfit | ({chosen: fits.misfit.get(chosen, math.inf)}),
        neighbour_correlation=neighbours,
        blocks=level.blocks,
        variation=spread,
    )


def _require(count: int) -> None:
    if count < FEWEST_BLOCKS:
        raise InputError(
            f"only {count} blocks of the volume show noise, {FEWEST_BLOCKS} are needed to estimate its level",
            remedy="give the level on the command line (--sigma, --gain, --k or --dispersion)",
        )


# -- which blocks --------------------------------------------------------------------------------------


def _usable(blocks: Blocks, power: Tensor, magnitude: bool) -> Points:
    """The blocks without Rician ones; those with the least structure pass for flat where too few are."""
    points = points_of(blocks, power)
    if int(points.flat.sum()) < ENOUGH:
        count = min(len(points), max(ENOUGH, int(LEAST_STRUCTURE * len(points))))
        points = replace(points, flat=points.structure <= points.structure.sort().values[count - 1])
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


def _symmetric(points: Points) -> Points:
    """Without the intensities at which the noise is skewed (cut off, or Rician), if enough are left."""
    even = [b for b in points.bins() if not _is_skewed(b)]
    return Points.joined(even) if sum(int(b.flat.sum()) for b in even) >= ENOUGH else points


def _is_skewed(points: Points) -> bool:
    """Whether the quietest of the flat blocks, of which structure has no part, are skewed."""
    flat = points.where(points.flat)
    if len(flat) < FLAT_IN_BIN:
        return False
    quiet = flat.where(flat.log_variance <= flat.log_variance.median())
    return float(quiet.skewness.median().abs()) > SKEWED


def _not_air(points: Points) -> Points:
    return points.where(points.mean > _air(points))


def _air(points: Points) -> float:
    """Intensity below which there is air."""
    return AIR * max(float(points.mean.quantile(0.99)), 0.0)


def _darkest_shade(points: Points) -> float:
    """Intensity from which the exponent is measured."""
    return SHADE / AIR * _air(points)


def _shades(points: Points) -> list[Points]:
    """The intensities on which the exponent is measured."""
    return points.where(points.mean > _darkest_shade(points)).log_bins()


def _flat_for(points: Points, rho: float) -> Points:
    """The flat blocks that a law of this exponent is measured on."""
    used = _not_air(points) if rho else _symmetric(points)
    return used.where(used.flat)


# -- which law -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fits:
    """Exponent measured, and misfit of each law."""

    power: float
    misfit: dict[str, float]


def _law_fits(points: Points, variation: Variation, signed: bool) -> _Fits:
    """Fit every law to the variance function, the variation in space taken off."""
    level = points.less(variation)
    curve = _Curve.of(_symmetric(level).bins())
    misfit = {name: curve.misfit(0.0) for name, law in LAWS.items() if law.fixed_power == 0}
    if signed:
        return _Fits(math.nan, misfit)
    curve = _Curve.of(_shades(level))
    power = curve.power()
    return _Fits(power, {name: misfit.get(name, curve.misfit(_exponent(name, power))) for name in LAWS})


@dataclass(frozen=True)
class _Curve:
    """Log intensity, log variance, weight and flatness of each intensity bin.

    Bins with enough flat blocks rest on those. The level of others is what the low end of all their blocks says,
    and an upper bound: structure only adds.
    """

    x: Tensor
    v: Tensor
    weight: Tensor
    flat: Tensor

    @classmethod
    def of(cls, bins: Sequence[Points]) -> _Curve:
        rows = []
        for b in bins:
            flat = b.where(b.flat)
            enough = len(flat) >= max(FLAT_IN_BIN, FLAT_SHARE * len(b))
            used = flat if enough else b
            error = flat.scatter / math.sqrt(len(flat)) + FLAT_ERROR if enough else ROUGH_ERROR
            rows.append((used.mean.abs().log().median(), used.level(), 1 / error**2, enough))
        x, v, weight, flat = torch.tensor(rows, dtype=torch.float64).T
        return cls(x, v, weight, flat.bool())

    @property
    def is_narrow(self) -> bool:
        """Whether the flat bins span too little intensity to tell an exponent."""
        at = self.x[self.flat]
        return len(at) < 3 or float(at.max() - at.min()) < NARROW

    def power(self) -> float:
        """Exponent of the variance function: a robust line, to which upper bounds above it say nothing."""
        slope, above = _robust_line(self.x, self.v, self.weight)
        if self.is_narrow:
            return slope
        for _ in range(BOUNDING):
            told = self.flat | (above < 0)
            slope, above = _robust_line(self.x, self.v, self.weight * told)
        return slope

    @property
    def power_error(self) -> float:
        """Standard error of the exponent by the bins' own errors."""
        w = self.weight / self.weight.sum()
        centre = (w * self.x).sum()
        return float((self.weight * (self.x - centre) ** 2).sum().clamp_min(1e-6) ** -0.5)

    def misfit(self, rho: float) -> float:
        """Weighted RMS deviation about the weighted median, held at one; upper bounds only from below."""
        residual = self.v - rho * self.x
        order = residual.argsort()
        half = self.weight[order].cumsum(0) >= self.weight.sum() / 2
        off = residual - residual[order][half][0]
        off = off.where(self.flat, off.clamp_max(0)).clamp(-1, 1)
        return float(((off**2 * self.weight).sum() / self.weight.sum()).sqrt())


def _robust_line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, Tensor]:
    """Slope of a line, and what lies above it, by iteratively reweighted least squares with Tukey's biweight."""
    robust = torch.ones_like(weight)
    slope, above = 0.0, torch.zeros_like(y)
    for _ in range(20):
        w = weight * robust
        mx, my = (x * w).sum() / w.sum(), (y * w).sum() / w.sum()
        slope = float(((x - mx) * (y - my) * w).sum() / ((x - mx) ** 2 * w).sum().clamp_min(1e-12))
        above = y - my - slope * (x - mx)
        scale = (4.7 * 1.48 * above[weight > 0].abs().median()).clamp_min(0.05)
        robust = (1 - (above.abs() / scale).clamp_max(1) ** 2) ** 2
    return slope, above


def _power_interval(
    points: Points, variation: Variation, edges: Sequence[int], generator: torch.Generator
) -> tuple[float, float]:
    seen = points.less(variation)
    curve = _Curve.of(_shades(seen))
    if curve.is_narrow:  # one shade and upper bounds tell no exponent
        return 0.0, STEEPEST
    draws = [_Curve.of(_shades(drawn)).power() for drawn in _resampled(seen, edges, generator)]
    error = math.hypot(float(torch.tensor(draws).std()), curve.power_error)
    return curve.power() - 2 * error, curve.power() + 2 * error


def _exponent(law: str, power: float) -> float:
    """The law's own exponent, or the one measured, held to [0, 2]; 0 where none was."""
    fixed = LAWS[law].fixed_power
    return fixed if fixed is not None else min(max(power, 0.0), 2.0) if power == power else 0.0


# -- how much, and where -------------------------------------------------------------------------------


def _variation(
    points: Points, shades: Points, signed: bool, shape: tuple[int, ...], edges: Sequence[int], seed: int
) -> Variation:
    """How the level varies in space beyond what a power of the intensity explains."""
    power = 0.0 if signed else _Curve.of(_shades(shades)).power()
    found = variation_of(_flat_for(points, power), power, shape, edges, seed)
    if signed or found.is_constant:
        return found
    power = _Curve.of(_shades(shades.less(found))).power()
    again = {found.intervals: (0,) * len(shape)}
    return variation_of(_flat_for(points, power), power, shape, edges, seed, again)


@dataclass(frozen=True)
class _Level:
    """Level of a law: log of the noise variance over ``mean**rho``, its error, and its variation in space."""

    rho: float
    log_dispersion: float
    error: float
    field: Tensor | None
    blocks: int

    def law(self, name: str) -> NoiseModel:
        dispersion = math.exp(self.log_dispersion)
        return LAWS[name].of_dispersion(self.rho, dispersion if self.field is None else dispersion * self.field.exp())

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of the law's level over the level."""
        laws = [LAWS[name].of_dispersion(self.rho, math.exp(self.log_dispersion + k * self.error)) for k in (0, -2, 2)]
        found, *ends = (list(law.parameters.values())[-1] for law in laws)
        return min(ends) / found, max(ends) / found

    @property
    def spread(self) -> tuple[float, float] | None:
        if self.field is None:
            return None
        some = (self.field.flatten()[:: 1 + self.field.numel() // 100_000] / 2).exp()
        return float(some.quantile(0.05)), float(some.quantile(0.95))


def _level(
    points: Points, law: str, power: float, variation: Variation, edges: Sequence[int], generator: torch.Generator
) -> _Level:
    rho = _exponent(law, power)
    used = _flat_for(points, rho)
    _require(len(used))
    field = None
    if not variation.is_constant:
        variation = fitted(used, rho, variation.intervals, variation.shape)
        seen = variation.at(used.centre)
        field = variation.field().clamp(float(seen.min()), float(seen.max()))
        middle = float(field.median())
        field -= middle
        used = used.less(variation, middle)
    centre = used.settled(rho)
    draws = torch.stack([drawn.settled(rho) for drawn in _resampled(used, edges, generator)])
    between = torch.stack([b.settled(rho) for b in used.bins()])
    error = math.hypot(float(draws.std()), float(between.std()) / math.sqrt(len(between)), BEYOND_CHANCE)
    return _Level(rho, float(centre), error, field, len(used))


def _resampled(points: Points, edges: Sequence[int], generator: torch.Generator) -> list[Points]:
    """Bootstrap by regions of the volume."""
    region = (points.centre / (REGION_BLOCKS * torch.tensor(edges))).floor().long()
    _, number = torch.unique(region, dim=0, return_inverse=True)
    members = [(number == r).nonzero()[:, 0] for r in range(int(number.max()) + 1)]
    draws = torch.randint(len(members), (RESAMPLES, len(members)), generator=generator)
    return [points.where(torch.cat([members[r] for r in draw])) for draw in draws.tolist()]


# -- correlation ---------------------------------------------------------------------------------------


def _correlation(found: Correlation, edges: Sequence[int]) -> tuple[Correlation, tuple[float, ...]]:
    """The correlation found on blocks, or none where it is next to none, and that of neighbours along each axis."""
    neighbours = tuple(lag if n > 1 else 0.0 for lag, n in zip(found.neighbours, edges, strict=True))
    white = max(map(abs, neighbours)) < WHITE_BELOW
    return Correlation.white(len(edges)) if white else found, neighbours
