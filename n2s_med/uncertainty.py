"""The uncertainty map: how much of a probe of the noise is left, squared and smoothed, and calibrated.

With ``J`` the derivative of the estimate, ``|J b|²`` of a probe ``b`` has the variance of the estimate as its mean. It
is never negative, so its shape holds where the posterior variance ``b J b`` (Manor & Michaeli, ICLR 2024), a small
difference of noisy products, does not: where the image is smooth. Its level lacks the bias of the estimate. That is
taken from the risk that Stein's identities measure, which needs no clean image either; and as errors that are left in
smooth regions are coarse, and Stein's risk is all the noisier the finer the detail it is asked for, the coarse part of
the risk is measured by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn import functional as F

NARROW, WIDE = 2, 6
"""Radii in voxels of the mean filters on the variance map, whose single values are noisy."""

REGION = 4
"""Radius in voxels of the mean by which voxels are put into bins of the calibration. What a probe says of one voxel and
Stein's risk there depend on the same noise: bins by the voxels' own variance have a risk too low where that is low, and
too high where it is high."""

MARGIN = NARROW + 2 * WIDE
"""Voxels around a core whose variance its own depends on."""

CURVE_BINS, CURVE_VOXELS = 12, 1000
"""Bins of the variance's calibration, and voxels that each needs."""

CHANCE = 3.0
"""Standard errors by which a difference must be more than chance."""

LEAST = 0.25
"""Share of the variance by probes below which none is calibrated."""


@dataclass(frozen=True)
class Errors:
    """What is measured of the error of each of some voxels, all in the units of ``scale``.

    Attributes
    ----------
    risk
        Stein's estimate of the squared error.
    coarse
        The same of its mean over a neighbourhood.
    told
        The variance by a probe, of that mean.
    fine
        The rest of the variance by a probe.
    scale
        Variance of the noise.
    """

    risk: Tensor
    coarse: Tensor
    told: Tensor
    fine: Tensor
    scale: Tensor

    @classmethod
    def of(cls, risk: Tensor, change: Tensor, probe: Tensor, answer: Tensor, scale: Tensor) -> Errors:
        """Of one patch, where the estimate is off the data by ``change`` and answers to ``probe`` by ``answer``."""
        moved, shaken, left = (mean_filter(part, NARROW) for part in (change, probe, answer))
        coarse = moved.square() - shaken.square() + 2 * shaken * left
        return cls(risk, coarse, left.square(), answer.square() - left.square(), scale)

    @classmethod
    def mean(cls, probed: Sequence[Errors]) -> Errors:
        """What several probes of one patch say."""
        return cls(*(torch.stack([getattr(each, part.name) for each in probed]).mean(0) for part in fields(cls)))

    @classmethod
    def joined(cls, patches: Sequence[Errors], inside: Sequence[Tensor]) -> Errors:
        """Those of the voxels ``inside`` of all patches, as vectors."""

        def join(name: str) -> Tensor:
            return torch.cat([getattr(patch, name)[where] for patch, where in zip(patches, inside, strict=True)])

        return cls(*(join(part.name) for part in fields(cls)))

    def level(self, part: Tensor, shared: float = 1.0) -> float:
        """Squared error of some voxels over the variance of their noise, of which ``shared`` act as one.

        The coarse risk, and the fine variance by probes as far as they are right where it is coarse; put right by the
        difference to the whole risk where that is more than chance.
        """
        scale, coarse, told, fine, risk = (
            float(values[part].mean()) for values in (self.scale, self.coarse, self.told, self.fine, self.risk)
        )
        found = (coarse + fine * min(max(coarse / told, 0.0), 1.0)) / scale if told else coarse / scale
        difference = risk / scale - found
        chance = float(self.risk[part].std()) / scale * (shared / len(part)) ** 0.5
        kept = max(0.0, 1 - (CHANCE * chance / difference) ** 2) if difference else 0.0
        return found + kept * difference


@dataclass(frozen=True)
class Curve:
    """Calibration of the variance: what probes say against the error that was measured where they say so.

    Attributes
    ----------
    said, measured
        Knots, rising; none leaves the variance as it is. Both in units of the noise variance.
    """

    said: Tensor = field(default_factory=lambda: torch.zeros(0))
    measured: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def fitted(cls, said: Tensor, near: Tensor, errors: Errors, shared: float = 1.0) -> Curve:
        """Fit to voxels, sorted by what is said near them and cut into bins; the curve is made to rise."""
        bins = min(CURVE_BINS, len(said) // CURVE_VOXELS)
        if bins < 2:
            return cls()
        knots, found = [], []
        for part in near.argsort().tensor_split(bins):
            knots.append(float(said[part].mean()))
            found.append(max(errors.level(part, shared), LEAST * knots[-1]))
        return cls(torch.tensor([0.0, *rising(knots)]), torch.tensor([0.0, *rising(found)]))

    def __call__(self, variance: Tensor) -> Tensor:
        """The calibrated variance; beyond the knots in proportion."""
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


def shared_voxels(kernel: Tensor) -> float:
    """How many voxels act as one where squares of coloured noise are averaged: the sum of its squared correlations."""
    spectrum = torch.fft.rfftn(kernel, [2 * n for n in kernel.shape])
    rho = torch.fft.irfftn(spectrum.abs().square(), [2 * n for n in kernel.shape])
    return float((rho / rho.flatten()[0]).square().sum())


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
