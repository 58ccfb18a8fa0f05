"""How the variance of the noise goes with the intensity: its exponent, and how well each law describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from n2s_med.noise import LAWS
from n2s_med.noise.points import SETTLING, STEEPEST, Points
from n2s_med.noise.usable import shades, symmetric
from n2s_med.noise.variation import Variation

FLAT_IN_BIN, FLAT_SHARE = 8, 0.1
FLAT_ERROR, ROUGH_ERROR = 0.05, 0.3
"""Flat blocks that an intensity bin's log variance rests on, and their share of the bin: fewer may be structure
that looks flat by chance. The bin's error then beyond chance, and that of bins with fewer."""

NARROW = 0.7
"""Range of log intensity (a factor of two) below which small blocks are looked at for other shades."""

FEWEST_SHADES = 3
"""Bins of flat blocks without which there is no line through them."""

SLOPES = (-0.25, STEEPEST + 0.25)
"""Exponents of noise laws, and what chance adds."""

ON_LINE = 0.15
"""Log variance about the line within which a bin tells the exponent: three of its errors."""

LIFTED, SUNK = 0.25, 1.0
"""Log variance above the line at which a bin holds structure, and below it at which something else is amiss."""

MOST_FLAT = 0.5
"""Share of the flat blocks on the line from which those elsewhere are structure."""

RISEN = 9.0
"""How much more a rough bin weighs below the line than above it.

"""


@dataclass(frozen=True)
class Power:
    """Exponent of the variance function.

    Attributes
    ----------
    value
        NaN where the scan admits no such function (negative intensities).
    interval
        95 % interval.
    told
        Whether flat blocks of several intensities tell it. Else the interval is what upper bounds leave, and the value
        the one that most of them touch.
    draws
        Of the resampled scan, where it is told.
    error_at
        Log intensity at which its error has no part in the level, and its standard error beyond chance.
    """

    value: float
    interval: tuple[float, float]
    told: bool
    draws: tuple[float, ...] = ()
    error_at: tuple[float, float] = (0.0, 0.0)


NO_POWER = Power(math.nan, (math.nan, math.nan), told=False)
"""Of scans with negative values."""


def power_of(points: Points, variation: Variation, edges: Sequence[int], generator: torch.Generator) -> Power:
    """Measure the exponent, the variation in space taken off."""
    seen = points.less(variation)
    curve = Curve.of(shades(seen))
    if curve.is_narrow:
        return Power(curve.power, curve.power_bounds, told=False)
    draws = [Curve.of(shades(drawn)).power for drawn in seen.resampled(edges, generator)]
    error = math.hypot(float(torch.tensor(draws).std()), curve.power_error)
    interval = curve.power - 2 * error, curve.power + 2 * error
    return Power(curve.power, interval, told=True, draws=tuple(draws), error_at=(curve.centre, curve.power_error))


def misfits(points: Points, power: Power, variation: Variation) -> dict[str, float]:
    """Misfit of each law that the scan admits, the variation in space taken off."""
    level = points.less(variation)
    even = Curve.of(symmetric(level).bins())
    found = {name: even.misfit(0.0, even.flat) for name, law in LAWS.items() if law.fixed_power == 0}
    if math.isnan(power.value):
        return found
    curve = Curve.of(shades(level))
    return {name: found.get(name, curve.misfit(exponent(name, power.value), curve.unlifted)) for name in LAWS}


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
            rows.append((used.mean.abs().log().median(), used.level(), 1 / error**2, enough and not b.rough))
        x, v, weight, flat = torch.tensor(rows, dtype=torch.float64).T
        return cls(x, v, weight, flat.bool())

    @cached_property
    def _fitted(self) -> tuple[float, Tensor]:
        """Exponent, and what lies above its line: of all lines, that which costs least.

        Structure lifts what it lifts, by any amount; but nothing lies below the noise by more than its error. So what
        lies above the line costs no more than :data:`LIFTED`, and what lies below up to :data:`SUNK`, with rough bins
        at once. The line is searched among all, as those lifted may be the most.
        """
        slopes = torch.linspace(*SLOPES, 251, dtype=torch.float64)
        over = self.v - slopes[:, None] * self.x
        costs = self._cost(over[:, None, :] - over[:, :, None])
        slope, middle = divmod(int(costs.argmin()), len(self.x))
        above = over[slope] - over[slope, middle]
        for _ in range(SETTLING):
            w = self.weight * ((above < LIFTED) & (above > -SUNK)) * (1 + (above < 0) * ~self.flat * (RISEN - 1))
            mx, my = (self.x * w).sum() / w.sum(), (self.v * w).sum() / w.sum()
            found = ((self.x - mx) * (self.v - my) * w).sum() / ((self.x - mx) ** 2 * w).sum().clamp_min(1e-12)
            found = found.clamp(*SLOPES)
            above = self.v - my - found * (self.x - mx)
        return float(found), above

    def _cost(self, above: Tensor) -> Tensor:
        """Of lines, by what lies above each, shape (..., bins)."""
        risen = torch.where(self.flat, 1.0, RISEN)
        held = torch.where(above > 0, above.clamp_max(LIFTED).square(), risen * above.clamp_min(-SUNK).square())
        return (self.weight * held).sum(-1)

    @property
    def power(self) -> float:
        """Exponent of the variance function."""
        return self._fitted[0]

    @property
    def told(self) -> Tensor:
        """The flat bins on the line."""
        return self.flat & (self._fitted[1].abs() < ON_LINE)

    @property
    def has_few_shades(self) -> bool:
        """Whether the flat bins span too little intensity to tell an exponent, whatever structure is in them."""
        return _is_narrow(self.x[self.flat])

    @property
    def is_narrow(self) -> bool:
        """Whether those of them on the line do."""
        return _is_narrow(self.x[self.told])

    @property
    def centre(self) -> float:
        """Mean log intensity of the bins that tell the exponent."""
        return float((self.weight * self.told * self.x).sum() / (self.weight * self.told).sum())

    @property
    def power_error(self) -> float:
        """Standard error of the exponent by the errors of the bins that tell it."""
        spread = (self.weight * self.told * (self.x - self.centre) ** 2).sum()
        return float(spread.clamp_min(1e-6) ** -0.5)

    @property
    def power_bounds(self) -> tuple[float, float]:
        """What upper bounds leave of the exponent, from the bin that is best known; all where there is none."""
        if not bool(self.told.any()):
            return 0.0, STEEPEST
        best = int((self.weight * self.told).argmax())
        run = self.x - self.x[best]
        slope = (self.v + 2 * self.weight**-0.5 - self.v[best]) / run
        least = max([0.0, *slope[run < -NARROW].tolist()])
        most = min([STEEPEST, *slope[run > NARROW].tolist()])
        return min(least, self.power), max(most, self.power)

    @property
    def unlifted(self) -> Tensor:
        """The flat bins that no structure lifts above the line."""
        return self.flat & (self._fitted[1] < LIFTED)

    def telling(self, points: Points) -> Points:
        """All points, or those of like intensity to the bins on the line if they are most but do not tell the exponent.

        What passes for flat elsewhere is structure then, which varies in space as anatomy does. Where few of the flat
        points lie on the line, it is the noise that varies.
        """
        on_line = self.told[(points.mean.abs().log()[:, None] - self.x).abs().argmin(1)]
        most = int((on_line & points.flat).sum()) > MOST_FLAT * int(points.flat.sum())
        return points.where(on_line) if self.is_narrow and most else points

    def misfit(self, rho: float, told: Tensor) -> float:
        """Weighted RMS deviation about the weighted median, held at one; what is not told from below alone.

        None where nothing is told: noise below all upper bounds may follow any law.
        """
        if not bool(told.any()):
            return 0.0
        residual = self.v - rho * self.x
        order = residual.argsort()
        half = self.weight[order].cumsum(0) >= self.weight.sum() / 2
        off = residual - residual[order][half][0]
        off = off.where(told, off.clamp_max(0)).clamp(-1, 1)
        return float(((off**2 * self.weight).sum() / self.weight.sum()).sqrt())


def _is_narrow(at: Tensor) -> bool:
    return len(at) < FEWEST_SHADES or float(at.max() - at.min()) < NARROW


def exponent(law: str, power: float) -> float:
    """The law's own exponent, or the one measured, held to [0, 2]; 0 where none was."""
    fixed = LAWS[law].fixed_power
    return fixed if fixed is not None else min(max(power, 0.0), 2.0) if power == power else 0.0
