"""Blocks of two voxels along each axis, as channels side by side.

Data of C channels become (block, C) channels at half the resolution, the block's last axis fastest; the same weights,
in other forms, are convolutions of blocks. The forms are differentiable in the weights.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F


def spread(weight: Tensor) -> Tensor:
    """Of a kernel of 3, the one of 4 that answers for every voxel of a block: (block, O), I, 4, ..."""
    places = itertools.product((0, 1), repeat=weight.ndim - 2)
    return torch.cat([F.pad(weight, [n for at in reversed(place) for n in (at, 1 - at)]) for place in places])


def gathered(weight: Tensor) -> Tensor:
    """Of a kernel of an even size, the one of half the size that is given blocks: O, (block, I), ..."""
    axes, half = weight.ndim - 2, weight.shape[2] // 2
    parts = weight.reshape(*weight.shape[:2], *(half, 2) * axes)
    steps, blocks = range(2, parts.ndim, 2), range(3, parts.ndim, 2)
    return parts.permute(0, *blocks, 1, *steps).flatten(1, axes + 1)


def scattered(weight: Tensor) -> Tensor:
    """Of a transposed kernel of 2, the one of 1 that answers with blocks: (block, O), I, 1, ..."""
    axes = range(2, weight.ndim)
    return weight.permute(*axes, 1, 0).flatten(0, -2)[..., *[None] * len(axes)]


def blocks(x: Tensor) -> Tensor:
    """Blocks (N, (block, C), ...) of features (N, C, ...) whose sizes are even, in channels-last memory."""
    number, channels, *size = x.shape
    parts = x.movedim(1, -1).reshape(number, *(m for n in size for m in (n // 2, 2)), channels)
    last = parts.ndim - 1
    return parts.permute(0, *range(1, last, 2), *range(2, last, 2), last).flatten(1 + len(size)).movedim(-1, 1)


def voxels(x: Tensor) -> Tensor:
    """What :func:`blocks` took blocks of: features (N, C, ...) in channels-last memory."""
    number, channels, *size = x.shape
    axes = len(size)
    parts = x.movedim(1, -1).reshape(number, *size, *(2,) * axes, channels >> axes)
    apart = parts.permute(0, *(at for axis in range(1, axes + 1) for at in (axis, axes + axis)), 2 * axes + 1)
    return apart.reshape(number, *(2 * n for n in size), channels >> axes).movedim(-1, 1)
