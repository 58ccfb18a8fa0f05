"""How volumes lie in memory: each plane in one piece, so that work goes plane by plane, in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from n2s_med.regions import Region, slabs

BAND = 1 << 18
"""Voxels that are worked on at once: what stays in the processor's cache."""

LINE = 8
"""Planes read at once, at least, where they do not lie apart in memory: so many values that lie one after the other
fill half a line of the processor's cache."""


def planes_apart(data: Tensor) -> Tensor:
    """The same values (X[, Y], planes), with each plane in one piece of memory; a copy only where they are not."""
    if are_apart(data):
        return data
    planes = data.shape[-1]
    return data.reshape(-1, planes).t().contiguous().view(planes, *data.shape[:-1]).movedim(0, -1)


def are_apart(data: Tensor) -> bool:
    """Whether each plane (the last axis counts them) lies in one piece of memory."""
    return data.movedim(-1, 0).is_contiguous()


def zeros_apart(shape: Sequence[int]) -> Tensor:
    """Zeros, each plane in one piece of memory."""
    return torch.zeros(shape[-1], *shape[:-1]).movedim(0, -1)


def in_cache(volume: Tensor) -> Iterator[Region]:
    """The volume in boxes of whole planes that stay in the processor's cache, if planes lie apart in memory."""
    planes = max(1 if are_apart(volume) else LINE, BAND // math.prod(volume.shape[:-1]))
    return slabs(volume.shape, planes)
