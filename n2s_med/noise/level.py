"""The level of the noise under a law: one for the volume, or a map of it, and its error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.noise import LAWS, NoiseModel
from n2s_med.noise.blocks import require_enough
from n2s_med.noise.curve import Power, exponent
from n2s_med.noise.points import Points
from n2s_med.noise.usable import flat_for
from n2s_med.noise.values import some_places
from n2s_med.noise.variation import FOLDS, Variation, fitted, folds

BEYOND_CHANCE, BEYOND_CHANCE_OF_MAP = 0.025, 0.032
"""Standard error of a log variance beyond chance, by volumes of known noise: slopes within blocks, spectrum; and that
at the median of a map, where anatomy without flat blocks lifts it."""

MEDIAN_OF, SPREAD_BY = 2_000_000, 100_000
"""Places of a map that its median rests on, and its percentiles, at most."""


@dataclass(frozen=True)
class Level:
    """Level of a law: log of the noise variance over ``mean**rho``, what it may be less and more, its variation."""

    rho: float
    log_dispersion: float
    range: tuple[float, float]
    field: Tensor | None
    shape: tuple[int, ...]
    blocks: int

    def law(self, name: str) -> NoiseModel:
        dispersion = math.exp(self.log_dispersion)
        if self.field is None:
            return LAWS[name].of_dispersion(self.rho, dispersion)
        return LAWS[name].of_dispersion(self.rho, self.field.exp().mul_(dispersion)).over(self.shape)

    def interval(self, name: str) -> tuple[float, float]:
        """95 % interval of the law's level over the level."""
        laws = [LAWS[name].of_dispersion(self.rho, math.exp(self.log_dispersion + off)) for off in (0, *self.range)]
        found, *ends = (list(law.parameters.values())[-1] for law in laws)
        return min(ends) / found, max(ends) / found

    @property
    def spread(self) -> tuple[float, float] | None:
        if self.field is None:
            return None
        everywhere = torch.ones((), dtype=torch.bool).expand(self.shape)
        some = (self.field.expand(self.shape)[some_places(everywhere, SPREAD_BY)] / 2).exp()
        return float(some.quantile(0.05)), float(some.quantile(0.95))


def level_of(
    points: Points,
    law: str,
    power: Power,
    variation: Variation,
    edges: Sequence[int],
    generator: torch.Generator,
    typical: float,
) -> Level:
    """Level of a law, where the flat blocks' variances over its variance function gather.

    Its interval is that of the variance at the intensity ``typical``: where the exponent was measured, its error is
    part of it.
    """
    rho = exponent(law, power.value)
    used = flat_for(points, rho)
    require_enough(len(used))
    field, error_of_map = None, 0.0
    if not variation.is_constant:
        error_of_map = _error_of_map(used, rho, variation, edges)
        found, bounds, middle = _mapped(used, rho, variation)
        field, used = found.field().clamp_(*bounds).sub_(middle), used.less(found, middle)
    centre = float(used.settled(rho))
    away = math.log(typical) if typical > 0 else 0.0
    free = LAWS[law].fixed_power is None and not math.isnan(power.value)
    drawn = used.resampled(edges, generator)
    rhos = [exponent(law, value) for value in power.draws] if free and power.told else [rho] * len(drawn)
    draws = [float(part.settled(own)) + own * away for part, own in zip(drawn, rhos, strict=True)]
    between = [float(b.settled(rho)) for b in used.bins()]
    beyond = BEYOND_CHANCE if field is None else BEYOND_CHANCE_OF_MAP
    errors = [statistics.stdev(draws), _error_of_mean(between), beyond, error_of_map]
    ends = [0.0]
    if free and power.told:
        at, error = power.error_at
        errors.append(error * abs(away - at))
    elif free:
        ends += [float(used.settled(end)) - centre + (end - rho) * away for end in power.interval]
    error = 2 * math.hypot(*errors)
    return Level(rho, centre, (min(ends) - error, max(ends) + error), field, variation.shape, len(used))


def _mapped(points: Points, rho: float, variation: Variation) -> tuple[Variation, tuple[float, float], float]:
    """The map by the splines of a variation, what it is held between, and about its median over the volume."""
    found = fitted(points, rho, variation.intervals, variation.shape)
    seen = found.at(points.centre)
    bounds = float(seen.min()), float(seen.max())
    return found, bounds, float(found.field(MEDIAN_OF).clamp_(*bounds).median())


def _error_of_map(points: Points, rho: float, variation: Variation, edges: Sequence[int]) -> float:
    """Standard error of the level at the map's median, by leaving out a part of the regions in turn (jackknife)."""
    fold = folds(points.centre, edges)
    rests = [points.where(fold != part) for part in range(FOLDS) if bool((fold == part).any())]
    levels = []
    for rest in rests:
        found, _, middle = _mapped(rest, rho, variation)
        levels.append(float(rest.less(found, middle).settled(rho)))
    return _error_of_mean(levels) * (len(levels) - 1)


def _error_of_mean(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
