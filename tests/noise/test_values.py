"""Which values of a volume are looked at, against plain indexing; and what is not looked at twice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from n2s_med.noise import Gaussian
from n2s_med.noise.values import are_finite, data, every_place, has_negative, once, some_places

SHAPE = (5, 7, 4)


def values() -> Tensor:
    """No two alike, planes apart in memory."""
    return torch.arange(math.prod(SHAPE), dtype=torch.float32).view(SHAPE[-1], *SHAPE[:-1]).movedim(0, -1)


def masks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(SHAPE, generator=generator) > 0.6
    some[2] = False
    whole = torch.ones((), dtype=torch.bool)
    return [whole.expand(SHAPE), whole.expand(SHAPE).clone(), some, torch.zeros(SHAPE, dtype=torch.bool)]


@pytest.mark.parametrize("valid", masks(), ids=["broadcast", "all", "some", "none"])
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_every_place_counts_in_the_order_of_the_axes(valid: Tensor, step: int) -> None:
    assert torch.equal(values()[every_place(valid, step)], values()[valid][::step])


@pytest.mark.parametrize("valid", masks(), ids=["broadcast", "all", "some", "none"])
def test_places_are_as_many_as_asked_for_at_most(valid: Tensor) -> None:
    for most in (1, 7, 50, 10_000):
        found = values()[some_places(valid, most)]
        assert len(found) <= most
        assert torch.equal(found, values()[valid][:: 1 + int(valid.sum()) // most])


@pytest.mark.parametrize("valid", masks(), ids=["broadcast", "all", "some", "none"])
def test_data_are_the_valid_values(valid: Tensor) -> None:
    volume = values()
    found = data(volume, valid)
    assert torch.equal(found.sort().values, volume[valid].sort().values)
    assert (found.data_ptr() == volume.data_ptr()) == bool(valid.all())


@pytest.mark.parametrize(
    ("given", "negative", "finite"),
    [
        ([], False, True),
        ([0.0, 2.0], False, True),
        ([3.0, -1e-9], True, True),
        ([math.nan, 1.0], False, False),
        ([math.nan, -1.0], True, False),
        ([1.0, math.inf], False, False),
        ([-math.inf], True, False),
    ],
)
def test_what_values_hold(given: list[float], negative: bool, finite: bool) -> None:
    assert has_negative(torch.tensor(given)) is negative
    assert are_finite(torch.tensor(given)) is finite


def test_a_map_that_is_constant_along_axes_takes_no_memory_for_them() -> None:
    profile = torch.tensor([3.0, 1.0, 2.0, 5.0])
    spread = Gaussian(profile.view(1, 1, 4)).over(SHAPE)
    dense = Gaussian(spread.sigma.clone())
    assert spread.sigma.untyped_storage().nbytes() == profile.nbytes
    assert torch.equal(once(spread.sigma).flatten(), profile)
    assert spread.parameters == dense.parameters
    region = (slice(1, 3), slice(0, 7), slice(2, 4))
    assert torch.equal(spread.at(region).to_unit(values()[region]), dense.at(region).to_unit(values()[region]))
    assert spread.typical == Gaussian(2.0)
