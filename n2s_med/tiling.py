"""Cut a volume into tiles with halos, so that the result does not depend on the cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

Region = tuple[slice, ...]
"""A box of a volume, as slices with start and stop."""


def tiles(shape: Sequence[int], edges: Sequence[int]) -> Iterator[Region]:
    """Boxes of at most ``edges`` voxels that fill a volume without overlap."""
    starts = (range(0, size, edge) for size, edge in zip(shape, edges, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(c, min(c + e, n)) for c, e, n in zip(corner, edges, shape, strict=True))


def grown(
    core: Region, shape: Sequence[int], margin: Sequence[int], stride: int = 1, flips: Sequence[int] = ()
) -> Region:
    """``core`` with ``margin`` voxels around it, clipped to the volume, on the pooling grid.

    A network that pools by ``stride`` sees the grid of the whole volume only if the region starts at a
    multiple of it, counted from the far end along the axes that will be flipped.
    """
    region = []
    for axis, (inside, size, reach) in enumerate(zip(core, shape, margin, strict=True)):
        low, high = max(0, inside.start - reach), min(size, inside.stop + reach)
        if axis in flips:
            high += (size - high) % stride
        else:
            low -= low % stride
        region.append(slice(low, high))
    return tuple(region)


def within(inner: Region, outer: Region) -> Region:
    """``inner`` in the coordinates of ``outer``."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))


def sizes(region: Region) -> list[int]:
    """Voxels along each axis."""
    return [side.stop - side.start for side in region]


def tile_edges(shape: Sequence[int], margin: Sequence[int], voxels: int) -> tuple[int, ...]:
    """Edges of tiles whose cores and margins hold at most about ``voxels``.

    The longest edge is halved until they do, but no edge below twice its margin: beyond, halos would be
    nearly all that is computed.
    """
    edges = list(shape)
    while math.prod(min(n, e + 2 * m) for n, e, m in zip(shape, edges, margin, strict=True)) > voxels:
        axis = max(range(len(edges)), key=edges.__getitem__)
        if edges[axis] <= 2 * margin[axis]:
            break
        edges[axis] = math.ceil(edges[axis] / 2)
    return tuple(edges)
