"""What the voxels around one say, over whole planes of a volume."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from n2s_med.layout import BAND, planes_apart
from n2s_med.noise import NoiseModel
from n2s_med.noise.values import all_valid
from n2s_med.regions import Region, grown, within
from n2s_med.score.network import ScoreUNet

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
    planes, data, inside = within(region, outer)[-1], planes_apart(y[outer]), valid[outer]
    whole = all_valid(inside)
    low = _extreme(torch.minimum, data if whole else torch.where(inside, data, math.inf), planes)
    high = _extreme(torch.maximum, data if whole else torch.where(inside, data, -math.inf), planes)
    far = law.to_unit(high) - law.to_unit(low) > FAR
    return torch.where(far, estimate.clamp(low, high), estimate)


def _extreme(more: Callable[..., Tensor], volume: Tensor, planes: slice) -> Tensor:
    """The most extreme value of each voxel of some planes and of its neighbours along all axes."""
    out = volume[..., planes].clone()
    for start, stop in ((planes.start - 1, planes.stop - 1), (planes.start + 1, planes.stop + 1)):
        first, last = max(start, 0), min(stop, volume.shape[-1])
        part = out[..., first - start : last - start]
        more(part, volume[..., first:last], out=part)
    for axis, size in enumerate(volume.shape[:-1]):
        before, out = out, out.clone()
        for here, there in ((0, 1), (1, 0)):
            part = out.narrow(axis, here, size - 1)
            more(part, before.narrow(axis, there, size - 1), out=part)
    return out


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
