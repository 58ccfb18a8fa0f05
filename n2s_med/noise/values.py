"""The values of a volume that are data and no padding: all of them, or some that are spread over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 1 << 20
"""Voxels of a mask that are looked through at once."""


def once(values: Tensor) -> Tensor:
    """What is broadcast, without its repetitions."""
    return values[tuple(slice(0, 1) if step == 0 else slice(None) for step in values.stride())]


def all_valid(valid: Tensor) -> bool:
    """Whether a mask is true everywhere."""
    return bool(once(valid).all())


def data(volume: Tensor, valid: Tensor) -> Tensor:
    """The valid values, in one row and any order; where all are valid and dense in memory they are not copied."""
    order = sorted(range(volume.ndim), key=volume.stride, reverse=True)
    if not all_valid(valid):
        return volume.permute(*order).masked_select(valid.permute(*order))
    return volume.permute(*order).flatten()


def some_places(valid: Tensor, most: int) -> tuple[Tensor, ...]:
    """Indices of at most so many valid voxels, evenly spread over the volume in the order of its axes."""
    count = valid.numel() if all_valid(valid) else int(valid.count_nonzero())
    return every_place(valid, 1 + count // most)


def unravelled(numbers: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Indices of voxels that are numbered in the order of the axes; PyTorch's own would import SymPy."""
    indices = []
    for size in reversed(shape):
        indices.append(numbers % size)
        numbers = numbers.div(size, rounding_mode="floor")
    return tuple(reversed(indices))


def every_place(valid: Tensor, step: int) -> tuple[Tensor, ...]:
    """Indices of one in so many valid voxels, counted in the order of the axes."""
    if all_valid(valid):
        return unravelled(torch.arange(0, valid.numel(), step), valid.shape)
    size = math.prod(valid.shape[1:])
    rows, before, found = max(1, AT_ONCE // size), 0, []
    for first in range(0, len(valid), rows):
        inside = valid[first : first + rows].flatten().nonzero()[:, 0]
        found.append(inside[-before % step :: step] + first * size)
        before += len(inside)
    return unravelled(torch.cat(found), valid.shape)


def are_finite(values: Tensor) -> bool:
    """Whether there is neither NaN nor infinity among the values."""
    if not values.numel():
        return True
    return all(math.isfinite(end) for end in torch.stack(values.aminmax()).tolist())


def has_negative(values: Tensor) -> bool:
    """Whether a value is below zero."""
    if not values.numel():
        return False
    lowest = float(values.min())
    return lowest < 0 or (math.isnan(lowest) and bool((values < 0).any()))
