"""How the variance of the noise goes with the intensity: its exponent, and how well each law describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.noise import LAWS
from n2s_med.noise.points import STEEPEST, Points
from n2s_med.noise.usable import shades, symmetric
from n2s_med.noise.variation import Variation

FLAT_IN_BIN, FLAT_SHARE = 8, 0.1
FLAT_ERROR, ROUGH_ERROR = 0.05, 0.3
"""Flat blocks that an intensity bin's log variance rests on, and their share of the bin: fewer may be structure
that looks flat by chance. The bin's error then beyond chance, and that of bins with fewer."""

NARROW = 0.7
"""Range of log intensity (a factor of two) below which small blocks are looked at for other shades."""

BOUNDING = 3
"""Rounds in which the upper bounds that say nothing are found."""


@dataclass(frozen=True)
class LawFits:
    """Exponent measured, and misfit of each law."""

    power: float
    misfit: dict[str, float]


def law_fits(points: Points, variation: Variation, signed: bool) -> LawFits:
    """Fit every law to the variance function, the variation in space taken off."""
    level = points.less(variation)
    curve = Curve.of(symmetric(level).bins())
    misfit = {name: curve.misfit(0.0) for name, law in LAWS.items() if law.fixed_power == 0}
    if signed:
        return LawFits(math.nan, misfit)
    curve = Curve.of(shades(level))
    power = curve.power()
    return LawFits(power, {name: misfit.get(name, curve.misfit(exponent(name, power))) for name in LAWS})


@dataclass(frozen=True)
class Curve:
    """Log intensity, log variance, weight and flatness of each intensity bin.

    Bins with enough flat blocks rest on those. The level of others is what the low end of all their blocks says,
    and an upper bound: structure only adds.
    """

    x: Tensor
    v: Tensor
    weight: Tensor
    flat: Tensor

    @classmethod
    def of(cls, bins: Sequence[Points]) -> Curve:
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


def power_interval(
    points: Points, variation: Variation, edges: Sequence[int], generator: torch.Generator
) -> tuple[float, float]:
    seen = points.less(variation)
    curve = Curve.of(shades(seen))
    if curve.is_narrow:  # one shade and upper bounds tell no exponent
        return 0.0, STEEPEST
    draws = [Curve.of(shades(drawn)).power() for drawn in seen.resampled(edges, generator)]
    error = math.hypot(float(torch.tensor(draws).std()), curve.power_error)
    return curve.power() - 2 * error, curve.power() + 2 * error


def exponent(law: str, power: float) -> float:
    """The law's own exponent, or the one measured, held to [0, 2]; 0 where none was."""
    fixed = LAWS[law].fixed_power
    return fixed if fixed is not None else min(max(power, 0.0), 2.0) if power == power else 0.0
