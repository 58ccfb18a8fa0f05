"""The noise of a scan from the scan alone: law, level, correlation, and how well they fit.

:mod:`n2s_med.noise.blocks` measures the noise's spectrum and the variance in each block. A law's level is
the *mode* of variance over the law's variance function: blocks with structure scatter above it, flat ones
gather at it. The exponent of the variance function comes from a robust line through the modes at each
intensity, in logarithms. Intervals are from resampled blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise import LAWS, NoiseModel
from n2s_med.noise.blocks import blocks_of, degrees_of_freedom, noise_spectrum, variance_of
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise

FEWEST_BLOCKS = 24
"""Blocks without which there is no estimate."""

ENOUGH = 48
"""Blocks that must be left when some are set aside."""

FEWEST_IN_BIN = 2
"""Blocks without which an intensity bin says nothing."""

QUIET = 0.5
"""Share of the blocks, those with the least structure, that the estimates rest on."""

LOW_END = 0.15
"""Share of all blocks below the low end of their variances."""

AGREED = 0.15
"""Share of the intensity bins that lie at or below the level taken: structure lifts the others."""

DENSEST = 0.35
"""Share of the values in the interval by which the mode is found, halving in on it."""

BINS = 12
"""Intensity bins of the variance function."""

RESAMPLES = 40
"""Bootstrap resamples behind an interval."""

WHITE_BELOW = 0.1
"""Noise whose neighbours correlate less than this is treated as white."""

MAGNITUDE_SNR = 4.0
"""MR magnitude below this many noise SDs is Rician; such blocks are left out."""

AIR = 1e-3
"""Blocks below this share of the brightest are air and say nothing of the variance function."""

POOR_FIT = 0.25
"""RMS deviation of log variance from the law above which the fit is called poor (about 25 %)."""

DARK = 0.1
"""Blocks below this share of the intensity range may be air."""

LESS_NOISE = 0.6
"""Air with less than this share of the noise's SD elsewhere is left out."""

SNAP = 1.0
"""A gain this near (in logarithm) to the lattice of the values is the lattice: the values are counts."""

FEW_COUNTS = 20
ON_LATTICE = 0.9
"""Values below so many counts are looked at, and the mean cosine from which they are whole counts."""


@dataclass(frozen=True)
class Estimate:
    """What the scan says of its noise.

    Attributes
    ----------
    noise
        Law with its level, and correlation.
    level_interval
        95 % interval of the level over the level itself, such as (0.97, 1.03).
    power, power_interval
        Exponent of the variance function measured on the scan, and its 95 % interval; NaN where the scan
        admits no such function (negative intensities).
    misfit
        For each law that the scan admits, the RMS deviation of log variance from it over the intensities.
    neighbour_correlation
        Correlation of the noise of neighbouring voxels along each axis.
    blocks
        Number of quiet blocks behind the figures.
    """

    noise: ScanNoise
    level_interval: tuple[float, float]
    power: float
    power_interval: tuple[float, float]
    misfit: Mapping[str, float]
    neighbour_correlation: tuple[float, ...]
    blocks: int

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
    _require(len(blocks.mean))
    power, structure = noise_spectrum(blocks)
    low_end = _log_chi2_quantile(LOW_END, degrees_of_freedom(blocks, power))
    points = _Points(blocks.mean, variance_of(blocks, power).log(), structure, low_end)
    if magnitude:
        points = points.above_noise_floor()
    signed = bool((y[valid] < 0).any())
    fits = _law_fits(points, signed)
    chosen = law or min(fits.misfit, key=fits.misfit.__getitem__)
    noise_law, level_interval = _level(points, chosen, fits.power, generator)
    if noise_law.quantum and (width := _lattice_near(y[valid], noise_law.quantum)):
        noise_law, level_interval = LAWS[chosen].of_dispersion(noise_law.variance_power, width), (1.0, 1.0)
    correlation = Correlation.from_power(power.view(blocks.shape))
    neighbours = tuple(lag if n > 1 else 0.0 for lag, n in zip(correlation.neighbours, blocks.shape, strict=True))
    if max(map(abs, neighbours)) < WHITE_BELOW:
        correlation = Correlation.white(y.ndim)
    quantum = quantum_of(y[valid], noise_law)
    floor = -math.inf if noise_law.variance_power == 0 or quantum else points.air()
    return Estimate(
        noise=ScanNoise(noise_law, correlation, quantum, floor),
        level_interval=level_interval,
        power=fits.power,
        power_interval=_power_interval(points, generator) if not signed else (float("nan"),) * 2,
        misfit=fits.misfit | ({chosen: fits.misfit.get(chosen, float("inf"))}),
        neighbour_correlation=neighbours,
        blocks=len(points.mean),
    )


def _require(count: int) -> None:
    if count < FEWEST_BLOCKS:
        raise InputError(
            f"only {count} blocks of the volume show noise, {FEWEST_BLOCKS} are needed to estimate its level",
            remedy="give the level on the command line (--sigma, --gain, --k or --dispersion)",
        )


@dataclass(frozen=True)
class _Points:
    """Mean, log variance and structure of blocks, and how far pure noise's low end lies off its level."""

    mean: Tensor
    log_variance: Tensor
    structure: Tensor
    low_end: float

    def where(self, keep: Tensor) -> _Points:
        return _Points(self.mean[keep], self.log_variance[keep], self.structure[keep], self.low_end)

    def resampled(self, generator: torch.Generator) -> _Points:
        return self.where(torch.randint(len(self.mean), (len(self.mean),), generator=generator))

    def level(self, rho: float = 0.0) -> Tensor:
        """Log of the noise variance over ``mean**rho`` in these blocks, of like intensity.

        The mode of those with little structure, or what the low end of all of them says if that is less.
        """
        values = self.log_variance - (rho * self.mean.abs().log() if rho else 0.0)
        quiet = values[self.structure <= self.structure.quantile(QUIET)]
        return torch.minimum(mode(quiet), values.quantile(LOW_END) - self.low_end)

    def bins(self) -> list[_Points]:
        """The blocks in bins of like intensity."""
        return [self.where(index) for index in self.mean.argsort().tensor_split(BINS) if len(index) >= FEWEST_IN_BIN]

    def floor(self, rho: float = 0.0) -> Tensor:
        """Log of the noise variance over ``mean**rho`` in the quietest bins: structure only adds."""
        return torch.stack([b.level(rho) for b in self.bins()]).quantile(AGREED)

    def above_noise_floor(self) -> _Points:
        """Without the blocks in which magnitude is Rician, if enough are left."""
        points = self
        for _ in range(2):
            bright = self.where(self.mean > MAGNITUDE_SNR * float((points.floor() / 2).exp()))
            if len(bright.mean) < ENOUGH:
                break
            points = bright
        return points

    def without_quiet_air(self) -> _Points:
        """Without the air, if it has far less noise than the rest: it was clipped or masked there."""
        low, high = self.mean.quantile(0.005), self.mean.quantile(0.995)
        dark = self.mean < low + DARK * (high - low)
        if min(int(dark.sum()), int((~dark).sum())) < ENOUGH:
            return self
        elsewhere = self.where(~dark)
        return elsewhere if self.where(dark).floor() - elsewhere.floor() < 2 * math.log(LESS_NOISE) else self

    def not_air(self) -> _Points:
        return self.where(self.mean > self.air())

    def air(self) -> float:
        """Intensity below which there is air."""
        return AIR * max(float(self.mean.quantile(0.99)), 0.0)


def _log_chi2_quantile(share: float, degrees: float) -> float:
    """Log of the quantile of a chi-square over its mean (Wilson & Hilferty 1931)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1)))
    return 3 * math.log(max(1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees)), 0.05))


@dataclass(frozen=True)
class _Fits:
    """Exponent measured, and misfit of each law."""

    power: float
    misfit: dict[str, float]


def mode(values: Tensor) -> Tensor:
    """Half-sample mode: the middle of the interval that is densest, narrowed down again and again."""
    values = values.sort().values
    while (count := max(8, int(len(values) * DENSEST))) < len(values):
        start = int((values[count - 1 :] - values[: len(values) - count + 1]).argmin())
        values = values[start : start + count]
    return values.median()


def _curve(points: _Points) -> tuple[Tensor, Tensor, Tensor]:
    """Log intensity, log variance and weight of each intensity bin; scattered bins hold structure."""
    bins = points.bins()
    x = torch.stack([b.mean.abs().log().median() for b in bins])
    v = torch.stack([b.level() for b in bins])
    spread = torch.stack([b.log_variance.quantile(0.5) - b.log_variance.quantile(0.1) for b in bins])
    return x, v, 1 / (spread**2 + 0.05**2)


def _law_fits(points: _Points, signed: bool) -> _Fits:
    """Fit every law to the variance function."""
    if signed:
        _, v, weight = _curve(points)
        return _Fits(float("nan"), {name: _spread(v, weight) for name, law in LAWS.items() if law.fixed_power == 0})
    x, v, weight = _curve(points.not_air())
    power, _ = _robust_line(x, v, weight)
    return _Fits(power, {name: _spread(v - _exponent(name, power) * x, weight) for name in LAWS})


def _spread(residual: Tensor, weight: Tensor) -> float:
    """Weighted RMS about the weighted median, outliers held at three of it."""
    order = residual.argsort()
    half = weight[order].cumsum(0) >= weight.sum() / 2
    deviation = (residual - residual[order][half][0]).abs()
    return float(((deviation.clamp_max(1.0) ** 2 * weight).sum() / weight.sum()).sqrt())


def _robust_line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    """Slope and intercept by iteratively reweighted least squares with Tukey's biweight."""
    robust = torch.ones_like(weight)
    slope, centre = 0.0, 0.0
    for _ in range(20):
        w = weight * robust
        mx, my = (x * w).sum() / w.sum(), (y * w).sum() / w.sum()
        slope = float(((x - mx) * (y - my) * w).sum() / ((x - mx) ** 2 * w).sum().clamp_min(1e-12))
        centre = float(my - slope * mx)
        residual = (y - centre - slope * x).abs()
        scale = (4.7 * 1.48 * residual.median()).clamp_min(0.05)
        robust = (1 - (residual / scale).clamp_max(1) ** 2) ** 2
    return slope, centre


def _power_interval(points: _Points, generator: torch.Generator) -> tuple[float, float]:
    seen = points.not_air()
    draws = [_robust_line(*_curve(seen.resampled(generator)))[0] for _ in range(RESAMPLES)]
    return _interval(torch.tensor(draws))


def _interval(draws: Tensor) -> tuple[float, float]:
    return float(draws.quantile(0.025)), float(draws.quantile(0.975))


def _level(
    points: _Points, law: str, power: float, generator: torch.Generator
) -> tuple[NoiseModel, tuple[float, float]]:
    """The law with its level, and the level's interval relative to it."""
    rho = _exponent(law, power)
    used = points if rho == 0 else points.not_air()
    _require(len(used.mean))

    if rho == 0:
        used = used.without_quiet_air()
    centre = used.floor(rho)
    draws = torch.stack([used.resampled(generator).floor(rho) for _ in range(RESAMPLES)])
    dispersion = float(centre.exp())
    low, high = _interval((draws - centre).exp())
    found, least, most = (LAWS[law].of_dispersion(rho, dispersion * factor) for factor in (1.0, low, high))
    ends = sorted(_level_of(end) / _level_of(found) for end in (least, most))
    return found, (ends[0], ends[1])


def _exponent(law: str, power: float) -> float:
    """The law's own exponent, or the one measured, held to [0, 2]; 0 where none was."""
    fixed = LAWS[law].fixed_power
    return fixed if fixed is not None else min(max(power, 0.0), 2.0) if power == power else 0.0


def _level_of(law: NoiseModel) -> float:
    """The law's level: its last parameter."""
    return list(law.parameters.values())[-1]


def quantum_of(values: Tensor, law: NoiseModel) -> float:
    """Width of the count lattice where ``values`` are whole counts of a Poisson law, else 0."""
    width = _lattice_near(values, law.quantum) if law.quantum else 0.0
    return width if width and abs(law.quantum / width - 1) < 0.02 else 0.0


def _lattice_near(values: Tensor, gain: float) -> float:
    """Width of the lattice from zero up that ``values`` lie on, within a factor of ``exp(SNAP)`` of ``gain``, or 0.

    The lattice is the widest for which the mean of ``cos(2π y / width)`` over the lowest counts is nearly one:
    its halves and thirds would do as well.
    """
    some = values[:: 1 + values.numel() // 200_000].double()
    some = some[(some > 0.5 * gain * math.exp(-SNAP)) & (some < FEW_COUNTS * gain)]
    if len(some) < FEWEST_BLOCKS:
        return 0.0
    some = some[:: 1 + len(some) // 5_000]

    def concordance(widths: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * some / widths[:, None]).mean(1)

    widths = gain * torch.linspace(-SNAP, SNAP, 4_001, dtype=torch.float64).exp()
    fitting = widths[concordance(widths) > ON_LATTICE]
    if not len(fitting):
        return 0.0
    for reach in (0.02, 1e-3, 5e-5):
        near = fitting[-1] * torch.linspace(1 - reach, 1 + reach, 401, dtype=torch.float64)
        fitting = near[concordance(near).argmax()][None]
    return float(fitting[0])
