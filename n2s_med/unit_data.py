"""A volume in the unit-noise domain, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import EllipsisType

import torch
from torch import Tensor

from n2s_med.errors import InputError, NoiseLawError
from n2s_med.layout import in_cache, planes_apart
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.values import all_valid, every_place
from n2s_med.regions import Region, slabs

CHECKED = 4_000_000
"""Voxels checked at once."""

LOW_END_BY = 100_000
"""Values that the low end of a volume rests on, about."""


class UnitData:
    """``u = T(y)`` of a volume, region by region, in float32; padding is filled with the low end of the values.

    Parameters
    ----------
    y, valid
        Volume in the units of the scan, and where it holds data.
    noise
        Its noise.

    Raises
    ------
    InputError
        If nothing is valid, or all valid values are equal.
    NoiseLawError
        Where valid values lie outside the law's domain.
    """

    def __init__(self, y: Tensor, valid: Tensor, noise: ScanNoise) -> None:
        self.y, self.valid, self.noise, self.shape = y, valid, noise, y.shape
        voxels, lowest, highest = 0, math.inf, -math.inf
        for region in in_cache(y):
            values, inside = y[region], valid[region]
            count = values.numel() if all_valid(inside) else int(inside.count_nonzero())
            if not count:
                continue
            if count == values.numel():
                low, high = values.aminmax()
            else:
                low = torch.where(inside, values, math.inf).min()
                high = torch.where(inside, values, -math.inf).max()
            self._check(torch.stack((low, high)))
            voxels, lowest, highest = voxels + count, min(lowest, float(low)), max(highest, float(high))
        if not voxels:
            raise InputError("every voxel is padding or outside the noise law", remedy="check the scan")
        if lowest == highest:
            raise InputError("the volume is constant: there is no noise to remove", remedy="check the scan")
        self.low = None if voxels == valid.numel() else self._low_end(1 + voxels // LOW_END_BY)

    def _low_end(self, step: int) -> Tensor:
        """Of one in so many values, which padding is filled with."""
        parts = ((self.y[region], self.valid[region]) for region in pieces(self.shape))
        return torch.cat([part[every_place(inside, step)] for part, inside in parts]).quantile(0.01)

    def _check(self, ends: Tensor) -> None:
        """Refuse some of the values, by the lowest and the highest, with what is to be said of all."""
        try:
            self.noise.law.check(ends)
        except NoiseLawError:
            self.noise.law.check(self.y[self.valid])
            raise

    def noise_at(self, region: Region) -> ScanNoise:
        """The noise of a region."""
        return replace(self.noise, law=self.noise.law.at(region))

    def filled(self, region: Region | EllipsisType) -> Tensor:
        """The values of a region, padding filled."""
        if self.low is None:
            return self.y[region]
        return torch.where(self.valid[region], self.y[region], self.low)

    def __getitem__(self, region: Region) -> Tensor:
        return self.noise.law.at(region).to_unit(planes_apart(self.filled(region))).float()


def admitted(y: Tensor, valid: Tensor, noise: ScanNoise) -> Tensor:
    """Where a volume is valid and its noise law holds; takes no memory of its own where the law holds everywhere."""
    inside, own = valid, False
    for region in pieces(y.shape):
        holds = noise.admits(y[region])
        if all_valid(holds) or torch.equal(found := inside[region] & holds, inside[region]):
            continue
        inside, own = inside if own else inside.clone(), True
        inside[region] = found
    return inside


def pieces(shape: Sequence[int]) -> Iterator[Region]:
    """A volume in pieces of so many planes as are checked at once."""
    return slabs(shape, max(1, CHECKED // math.prod(shape[:-1])))


def to_unit(y: Tensor, valid: Tensor, noise: ScanNoise, generator: torch.Generator | None = None) -> Tensor:
    """All of :class:`UnitData` at once, or raise what it raises.

    A ``generator`` spreads whole counts over their cells, for training; without it they stay what they are.
    """
    u = UnitData(y, valid, noise)
    if generator is None:
        return u[tuple(slice(0, n) for n in y.shape)]
    return noise.law.to_unit(noise.dequantised(u.filled(...), generator)).float()
