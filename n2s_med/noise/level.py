"""The level of the noise under a law: one for the volume, or a map of it, and its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.noise import LAWS, NoiseModel
from n2s_med.noise.blocks import require_enough
from n2s_med.noise.curve import exponent
from n2s_med.noise.points import Points
from n2s_med.noise.usable import flat_for
from n2s_med.noise.variation import Variation, fitted

BEYOND_CHANCE = 0.025
"""Standard error of a log variance beyond chance, by volumes of known noise: slopes within blocks, spectrum."""


@dataclass(frozen=True)
class Level:
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


def level_of(
    points: Points, law: str, power: float, variation: Variation, edges: Sequence[int], generator: torch.Generator
) -> Level:
    rho = exponent(law, power)
    used = flat_for(points, rho)
    require_enough(len(used))
    field = None
    if not variation.is_constant:
        variation = fitted(used, rho, variation.intervals, variation.shape)
        seen = variation.at(used.centre)
        field = variation.field().clamp(float(seen.min()), float(seen.max()))
        middle = float(field.median())
        field -= middle
        used = used.less(variation, middle)
    centre = used.settled(rho)
    draws = torch.stack([drawn.settled(rho) for drawn in used.resampled(edges, generator)])
    between = torch.stack([b.settled(rho) for b in used.bins()])
    error = math.hypot(float(draws.std()), float(between.std()) / math.sqrt(len(between)), BEYOND_CHANCE)
    return Level(rho, float(centre), error, field, len(used))
