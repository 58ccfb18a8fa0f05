"""Boxes of a volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Region = tuple[slice, ...]
"""A box of a volume, as slices with start and stop."""


def slabs(shape: Sequence[int], planes: int) -> Iterator[Region]:
    """The volume cut along its last axis into boxes of at most ``planes`` planes."""
    whole = [slice(0, size) for size in shape[:-1]]
    for start in range(0, shape[-1], planes):
        yield (*whole, slice(start, min(start + planes, shape[-1])))


def grown(core: Region, shape: Sequence[int], margin: Sequence[int]) -> Region:
    """``core`` with ``margin`` voxels around it, clipped to the volume."""
    return tuple(
        slice(max(0, inside.start - reach), min(size, inside.stop + reach))
        for inside, size, reach in zip(core, shape, margin, strict=True)
    )


def within(inner: Region, outer: Region) -> Region:
    """``inner`` in the coordinates of ``outer``."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
