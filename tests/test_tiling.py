"""Tiles fill a volume, and halos lie on the pooling grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2s_med.tiling import grown, sizes, tile_edges, tiles, within

SHAPES = st.lists(st.integers(1, 30), min_size=2, max_size=3)


@given(SHAPES, st.data())
def test_tiles_cover_each_voxel_once(shape: list[int], data: st.DataObject) -> None:
    edges = [data.draw(st.integers(1, n + 3)) for n in shape]
    count = torch.zeros(shape, dtype=torch.int64)
    for core in tiles(shape, edges):
        assert all(size <= edge for size, edge in zip(sizes(core), edges, strict=True))
        count[core] += 1
    assert (count == 1).all()


@given(SHAPES, st.data())
def test_grown_holds_the_margin_and_lies_on_the_grid(shape: list[int], data: st.DataObject) -> None:
    stride = data.draw(st.sampled_from([1, 2, 4]))
    flips = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    margin = [data.draw(st.integers(0, 12)) for _ in shape]
    for core in tiles(shape, [7] * len(shape)):
        region = grown(core, shape, margin, stride, sorted(flips))
        for axis, (inside, outside, size, reach) in enumerate(zip(core, region, shape, margin, strict=True)):
            assert 0 <= outside.start <= max(0, inside.start - reach)
            assert min(size, inside.stop + reach) <= outside.stop <= size
            assert inside.start - outside.start < reach + stride
            assert outside.stop - inside.stop < reach + stride
            on_grid = size - outside.stop if axis in flips else outside.start
            assert on_grid % stride == 0


@given(SHAPES)
def test_within_finds_the_core_again(shape: list[int]) -> None:
    volume = torch.arange(math.prod(shape)).reshape(shape)
    for core in tiles(shape, [5] * len(shape)):
        outer = grown(core, shape, [3] * len(shape))
        assert torch.equal(volume[outer][within(core, outer)], volume[core])


@given(SHAPES, st.integers(1, 40_000), st.integers(0, 10))
def test_tile_edges_bound_the_memory(shape: list[int], voxels: int, margin: int) -> None:
    edges = tile_edges(shape, [margin] * len(shape), voxels)
    assert all(1 <= edge <= size for edge, size in zip(edges, shape, strict=True))
    with_halo = math.prod(min(n, e + 2 * margin) for n, e in zip(shape, edges, strict=True))
    smallest = max(edges) <= 2 * margin or max(edges) == 1
    assert with_halo <= voxels or smallest


@pytest.mark.parametrize(
    ("voxels", "edges"), [(10**9, (64, 64, 64)), (64**3, (64, 64, 64)), (64**3 - 1, (32, 64, 64)), (1, (1, 1, 1))]
)
def test_small_volumes_are_one_tile(voxels: int, edges: tuple[int, ...]) -> None:
    assert tile_edges((64, 64, 64), (0, 0, 0), voxels) == edges
