"""A volume passed in another orientation is the volume passed by a turned network."""

from __future__ import annotations

import itertools

import pytest
import torch
from random_networks import random_network

from n2s_med.noise.correlation import Correlation
from n2s_med.score.orientations import MOST, Orientation, orientations

EVERY = [
    Orientation(order, flips)
    for dims in (2, 3)
    for order in itertools.permutations(range(dims))
    for n in range(dims + 1)
    for flips in itertools.combinations(range(dims), n)
]
ALONG_X = torch.zeros(3, 3, 3)
ALONG_X[:, 1, 1] = torch.tensor([0.3, 0.9, 0.3])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("way", EVERY, ids=str)
def test_turned_network(way: Orientation) -> None:
    """Traits, one and two voxels apart along each axis, are turned with the volume."""
    dims, unet = len(way.order), random_network(len(way.order), (2, 3, 4))
    v = 3 * torch.randn(1, 1, 8, 12, *[4] * (dims - 2), generator=seeded())
    traits = 0.2 * torch.rand(1, 2, dims, generator=seeded())
    with torch.no_grad():
        there_and_back = way.restored(unet(way.laid(v), traits[:, :, list(way.order)].flatten(1)))
        turned = way.of(unet)(v, traits.flatten(1))
        as_it_is = unet(v, traits.flatten(1))
    torch.testing.assert_close(turned, there_and_back, rtol=0, atol=2e-5)
    moved = way.flips or way.order != tuple(range(dims))
    assert bool((turned - as_it_is).abs().max() > 0.1) is bool(moved)
    torch.testing.assert_close(way.restored(way.laid(v)), v, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spacing", "correlation", "orders"),
    [
        ((1, 1, 1), Correlation.white(), {(0, 1, 2), (1, 0, 2)}),
        ((0.7, 0.7, 5), Correlation.white(), {(0, 1, 2), (1, 0, 2)}),
        ((5, 0.7, 0.7), Correlation.white(), {(0, 1, 2), (0, 2, 1)}),
        ((1, 2, 3), Correlation.white(), {(0, 1, 2)}),
        ((0.7, 0.7, 5), Correlation.from_kernel(ALONG_X), {(0, 1, 2)}),
        ((1, 1), Correlation.white(2), {(0, 1), (1, 0)}),
        ((1, 2), Correlation.white(2), {(0, 1)}),
    ],
)
def test_only_like_axes_are_exchanged(
    spacing: tuple[float, ...], correlation: Correlation, orders: set[tuple[int, ...]]
) -> None:
    """Those within the planes first; the volume as it lies is the first orientation, and all differ."""
    ways = orientations(MOST, spacing, correlation)
    assert {way.order for way in ways} == orders
    assert ways[0] == Orientation(tuple(range(len(spacing))))
    assert len(set(ways)) == MOST
    assert [orientations(n, spacing, correlation) for n in range(1, MOST)] == [ways[:n] for n in range(1, MOST)]
