"""What the voxels around one say, over whole planes of a volume."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from n2s_med.noise import NoiseModel
from n2s_med.regions import Region, grown, within
from n2s_med.score.network import ScoreUNet

BAND = 1 << 18
"""Voxels of a band of rows that is filtered at once."""

ENERGY_MARGIN = 3
"""Voxels around one that tell the energy of its detail."""

FAR = 12.0
"""Noise standard deviations that a voxel's neighbourhood spans, from which the estimate keeps to the values in it. The
highest of noisy values is above the highest clean one on average (Jensen), the lowest below the lowest; beyond them
lies no estimate, unless noise alone spans so little that its mean may lie outside."""


def held(estimate: Tensor, y: Tensor, valid: Tensor, law: NoiseModel, region: Region) -> Tensor:
    """The estimate of a region of whole planes, within the values of its neighbourhood where these are far apart.

    What stands out by many noise standard deviations is next to nothing that the network has learned from, and
    it exaggerates that.

    Parameters
    ----------
    estimate
        Estimate of the region.
    y, valid
        The whole noisy volume, and where it holds data.
    law
        Noise law of the region.
    region
        Where the estimate lies.
    """
    outer = grown(region, y.shape, (0,) * (y.ndim - 1) + (1,))
    inner = within(region, outer)
    data, inside = y[outer], valid[outer]
    low = -_highest(torch.where(inside, -data, -math.inf))[inner]
    high = _highest(torch.where(inside, data, -math.inf))[inner]
    far = law.to_unit(high) - law.to_unit(low) > FAR
    return torch.where(far, estimate.clamp(low, high), estimate)


def _highest(volume: Tensor) -> Tensor:
    """The highest value of each voxel and its neighbours, along all axes."""
    for axis, size in enumerate(volume.shape):
        out = volume.clone()
        for here, there in ((0, 1), (1, 0)):
            part = out.narrow(axis, here, size - 1)
            torch.maximum(part, volume.narrow(axis, there, size - 1), out=part)
        volume = out
    return volume


def detail_energy(data: Tensor) -> Tensor:
    """The local mean square of the detail, by bands of rows that stay in the processor's cache."""
    found = torch.empty_like(data)
    rows = max(1, BAND // math.prod(data.shape[1:]))
    for start in range(0, data.shape[0], rows):
        band = (slice(start, min(start + rows, data.shape[0])), *(slice(0, n) for n in data.shape[1:]))
        outer = grown(band, data.shape, (ENERGY_MARGIN,) + (0,) * (data.ndim - 1))
        energy = ScoreUNet.split(data[outer].movedim(-1, 0)[None, None])[0].square()
        for _ in range(2):
            energy = ScoreUNet.smoothed(energy)
        found[band] = energy[0, 0].movedim(0, -1)[within(band, outer)]
    return found


def planes_apart(data: Tensor) -> Tensor:
    """The same values (X[, Y], planes), with each plane in one piece of memory; a copy only where they are not."""
    if data.movedim(-1, 0).is_contiguous():
        return data
    planes = data.shape[-1]
    return data.reshape(-1, planes).t().contiguous().view(planes, *data.shape[:-1]).movedim(0, -1)
