"""The uncertainty map: a variance from probes, smoothed no more than its own noise asks, and calibrated.

Single probes are noisy, and where the image is smooth the posterior variance is a small difference that the network
gets wrong. So the map is held against the risk that Stein's identities measure, which needs no clean image either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

NARROW, WIDE = 2, 6
"""Radii in voxels of the mean filters on the variance map, whose single values are noisy."""

MARGIN = NARROW + 2 * WIDE
"""Voxels around a core whose variance its own depends on."""

CURVE_BINS, CURVE_VOXELS = 6, 1000
"""Bins of the variance's calibration, and voxels that each needs."""


@dataclass(frozen=True)
class Curve:
    """Calibration of the posterior variance: what it says against the risk that was measured where it says so.

    Attributes
    ----------
    said, measured
        Knots, rising; none leaves the variance as it is. Both in units of the noise variance.
    """

    said: Tensor = field(default_factory=lambda: torch.zeros(0))
    measured: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def fitted(cls, said: Tensor, error: Tensor, scale: Tensor) -> Curve:
        """Fit to voxels: the variance they are said to have, and :func:`risk_terms` of each.

        Voxels are sorted by what is said and cut into bins; each bin is corrected by as much of its difference as
        its standard error does not explain, and the curve is made to rise.
        """
        bins = min(CURVE_BINS, len(said) // CURVE_VOXELS)
        if bins < 2:
            return cls()
        order = said.argsort()
        knots, found = [], []
        for part in order.tensor_split(bins):
            mean, level = float(said[part].mean()), float(scale[part].mean())
            difference = float(error[part].mean()) / level - mean
            doubt = float(error[part].std()) / level / len(part) ** 0.5
            kept = max(0.0, 1 - (doubt / difference) ** 2) if difference else 0.0
            knots.append(mean)
            found.append(max(mean + kept * difference, doubt / 4))
        return cls(torch.tensor(knots), torch.tensor(rising(found)))

    def __call__(self, variance: Tensor) -> Tensor:
        """The calibrated variance; beyond the knots in proportion, below them as at the first."""
        if not len(self.said):
            return variance
        index = torch.searchsorted(self.said, variance.contiguous()).clamp(1, len(self.said) - 1)
        low, high = self.said[index - 1], self.said[index]
        share = ((variance - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        between = self.measured[index - 1].lerp(self.measured[index], share)
        return between * (variance / self.said[-1]).clamp_min(1) if self.said[-1] > 0 else between


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that does not fall, by pooling adjacent violators (isotonic regression)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def smoothed_variance(first: Tensor, second: Tensor) -> Tensor:
    """A variance map from two noisy ones, each from its own probes.

    Their narrow means differ by noise alone, so its size is known everywhere; where it is all there is, the wide mean
    is taken, and where the map itself varies more, the narrow one (the local filter of Lee, IEEE PAMI 2 (1980) 165).
    """
    a, b = (mean_filter(half, NARROW) for half in (first, second))
    narrow = (a + b) / 2
    wide = mean_filter(narrow, WIDE)
    noise = mean_filter(((a - b) / 2).square(), WIDE)
    varies = mean_filter((narrow - wide).square(), WIDE)
    share = (1 - noise / varies.clamp_min(1e-12)).clamp(0, 1)
    return (wide + share * (narrow - wide)).clamp_min(0)


def mean_filter(volume: Tensor, radius: int) -> Tensor:
    """Mean over a cube of ``2 radius + 1`` voxels; at the borders over the part inside."""
    both = torch.stack((volume, torch.ones_like(volume)))
    for axis in range(1, both.ndim):
        lines = both.movedim(axis, -1)
        pooled = F.avg_pool1d(lines.reshape(1, -1, lines.shape[-1]), 2 * radius + 1, stride=1, padding=radius)
        both = pooled.view(lines.shape).movedim(-1, axis)
    mean: Tensor = both[0] / both[1]
    return mean
