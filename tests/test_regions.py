"""Slabs fill a volume, and grown boxes stay inside it."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from n2s_med.regions import grown, slabs, within

SHAPES = st.lists(st.integers(1, 30), min_size=2, max_size=3)


@given(SHAPES, st.integers(1, 40))
def test_slabs_cover_each_voxel_once(shape: list[int], planes: int) -> None:
    count = torch.zeros(shape, dtype=torch.int64)
    for slab in slabs(shape, planes):
        assert 1 <= slab[-1].stop - slab[-1].start <= planes
        count[slab] += 1
    assert (count == 1).all()


@given(SHAPES, st.data())
def test_grown_holds_the_margin_that_there_is(shape: list[int], data: st.DataObject) -> None:
    margin = [data.draw(st.integers(0, 12)) for _ in shape]
    for core in slabs(shape, 7):
        for inside, outside, size, reach in zip(core, grown(core, shape, margin), shape, margin, strict=True):
            assert outside.start == max(0, inside.start - reach)
            assert outside.stop == min(size, inside.stop + reach)


@given(SHAPES)
def test_within_finds_the_core_again(shape: list[int]) -> None:
    volume = torch.arange(math.prod(shape)).reshape(shape)
    for core in slabs(shape, 5):
        outer = grown(core, shape, [3] * len(shape))
        assert torch.equal(volume[outer][within(core, outer)], volume[core])
