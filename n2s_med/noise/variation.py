"""How the level of the noise varies over the volume: a smooth map, where the blocks show one.

Parallel MR has its g-factor, CT the length of the rays' way through the body, PET the axial sensitivity of its
detectors. The log of the noise variance over the law's variance function is fitted by quadratic splines,
robustly and with a penalty on its slopes. Finer and coarser splines are compared by cross-validation on whole
regions, so that a map is taken only if it predicts blocks that it has not seen better than one level does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from n2s_med.noise.points import LOW_END, REJECTED, Points, log_chi2_quantile

FEWEST = 200
"""Flat blocks without which no map is looked for."""

MOST = 2_000
"""Flat blocks that the comparison of splines rests on."""

MAP_INTERVALS = (1, 3, 5)
"""Spline intervals of maps along an axis."""

MOST_INTERVALS = 48
"""Spline intervals of a profile along one axis, at most; it has one for each block edge."""

CLOSE = 0.1
"""Deviations are taken for this many standard deviations at least where weights divide by them."""

CHANCE_LOSS = 0.2332
"""Mean quantile loss of a standard normal at its 15 % quantile: its density there."""

FOLDS = 4
"""Parts of the cross-validation."""

REGION_BLOCKS = 2.0
"""Edge of a region that is left out as a whole, in block edges."""

BEND, STIFF = 0.003, 0.01
"""Penalty on the second differences of neighbouring coefficients, in shares of the weight of the blocks behind one,
and that on their differences, in shares of the first."""

EXPLAINED = 1.2
"""Loss of one level, in units of the chance one, below which there is nothing to explain."""

GAIN, REFINED = 0.9, 0.98
"""A map must lower the cross-validated loss to this share of that of one level, and each further candidate to this
share of that of the best so far; to the second share where the best so far explains the blocks as well as chance lets
it. (Of noise that grows threefold from the middle to the sides, a map that was too stiff, its loss 4 % above that of
the next, had 15 % too much in the middle. Where much is left unexplained, as in PET of many organs, finer maps follow
these.)"""

LEAST_RANGE = 1.1
"""Ratio of standard deviations over the blocks (95th over 5th percentile) below which there is no map."""

ROUNDS, SETTLED = 12, 0.02
"""Most rounds of a regression, and the change in standard deviations at which it ends."""

PLANES, PART = 16, 1 << 14
"""Planes of a map that are computed at once, and voxels of each: what stays in the processor's cache."""

Splines = tuple[int, ...]
"""Intervals of splines along each axis, none where they are constant."""


@dataclass(frozen=True)
class Variation:
    """Log of the noise variance over the law's variance function, as splines over the volume.

    Attributes
    ----------
    coefficients
        One axis for each of the volume; a single one for an axis along which it is constant.
    shape
        Shape of the volume.
    """

    coefficients: Tensor
    shape: tuple[int, ...]

    @property
    def intervals(self) -> tuple[int, ...]:
        """Intervals of the splines along each axis, none where it is constant."""
        return tuple(max(size - 2, 0) for size in self.coefficients.shape)

    @property
    def is_constant(self) -> bool:
        """Whether there is one level only."""
        return self.coefficients.numel() == 1

    def at(self, centre: Tensor) -> Tensor:
        """Values at places in voxels, shape (B, axes) to (B,)."""
        return _splines(centre, self.intervals, self.shape) @ self.coefficients.flatten()

    def field(self, most: int | None = None) -> Tensor:
        """Values at every voxel, or at so many on a grid at most; an axis along which they do not vary has one place.

        Float32; planes lie apart in memory.
        """
        varying = sum(map(bool, self.intervals))
        edge = math.ceil(most ** (1 / varying)) if most and varying else max(self.shape)
        *along, across = (
            _splines(torch.arange(0, size if count else 1, -(-size // edge))[:, None], (count,), (size,))
            for count, size in zip(self.intervals, self.shape, strict=True)
        )
        field = self.coefficients
        for splines in along:  # the axis that is left goes to the end, so that the planes' comes first
            field = torch.tensordot(field, splines, ([0], [1]))
        field = field.flatten(1).contiguous()
        out = torch.empty(len(across), field.shape[1])
        for planes, weights in zip(torch.split(out, PLANES), torch.split(across, PLANES), strict=True):
            for part, values in zip(torch.split(planes, PART, 1), torch.split(field, PART, 1), strict=True):
                part.copy_(weights @ values)
        return out.view(len(across), *map(len, along)).movedim(0, -1)


def variation_of(
    points: Points,
    rho: float,
    shape: Sequence[int],
    edges: Sequence[int],
    seed: int,
    tried: Mapping[Splines, Splines] | None = None,
) -> Variation:
    """The variation that flat blocks show of their variance over ``mean**rho``; constant if none is significant.

    Parameters
    ----------
    points
        Flat blocks.
    rho
        Exponent of the variance function.
    shape
        Shape of the volume.
    edges
        Edges of a block.
    seed
        Seed of the choice of blocks for the comparison.
    tried
        Splines to compare, and the coarser ones that must have gained before each is tried; all by default.
    """
    volume = tuple(shape)
    one = (0,) * len(volume)
    rough, points = points, points.where(points.structure <= 1)  # above that it is structure half the time
    if not len(points):
        return fitted(rough, rho, one, volume)
    if len(points) < FEWEST:
        return fitted(points, rho, one, volume)
    generator = torch.Generator().manual_seed(seed)
    some = points.where(torch.randperm(len(points), generator=generator)[:MOST])
    fold = folds(some.centre, edges)
    best, least = one, _prediction_error(some, rho, one, volume, fold)
    if least < EXPLAINED:
        return fitted(points, rho, one, volume)
    errors = {one: least}
    for splines, coarser in (tried or _candidates(volume, edges)).items():
        if coarser != one and errors.get(coarser, math.inf) >= errors[one]:
            continue
        errors[splines] = _prediction_error(some, rho, splines, volume, fold)
        if errors[splines] < (REFINED if least < EXPLAINED else GAIN) * least:
            best, least = splines, errors[splines]
    found = fitted(points, rho, best, volume)
    low, high = (found.at(points.centre) / 2).exp().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return found if high > LEAST_RANGE * low else fitted(points, rho, one, volume)


def fitted(points: Points, rho: float, intervals: tuple[int, ...], shape: tuple[int, ...]) -> Variation:
    """The variation by some splines: a regression of the low end, as structure only adds."""
    sizes = _sizes(intervals)
    found = _low_end(points.over(rho), _splines(points.centre, intervals, shape), _bends(sizes), points.scatter)
    return Variation(found.reshape(sizes) - log_chi2_quantile(LOW_END, points.degrees), shape)


def _low_end(values: Tensor, splines: Tensor, penalty: Tensor, scatter: float) -> Tensor:
    """Coefficients of the splines at the low end of the values, by iteratively reweighted least squares."""
    penalty = penalty * BEND / splines.shape[1]
    found = values.quantile(LOW_END).expand(splines.shape[1])
    for _ in range(ROUNDS):
        off = values - splines @ found
        weight = _tilt(off) * scatter / off.abs().clamp_min(CLOSE * scatter)
        weighted = splines * weight[:, None]
        last, found = found, torch.linalg.solve(weighted.T @ splines + penalty * weight.sum(), weighted.T @ values)
        if float((found - last).abs().max()) < SETTLED * scatter:
            break
    return found


def _tilt(off: Tensor) -> Tensor:
    """Slope of the loss whose least value is at the low end of the values (Koenker & Bassett 1978)."""
    return torch.where(off > 0, LOW_END, 1 - LOW_END)


def _candidates(shape: tuple[int, ...], edges: Sequence[int]) -> dict[Splines, Splines]:
    """Splines to compare, from few to many, and the coarser ones that must have gained before each is tried.

    Profiles along one axis, maps over some axes, maps over all.
    """
    room = [size // edge if size > edge else 0 for size, edge in zip(shape, edges, strict=True)]
    axes = range(len(shape))
    one = (0,) * len(shape)
    found = {tuple(min(n, MOST_INTERVALS) if a == axis else 0 for a in axes): one for axis, n in enumerate(room)}
    for number in range(1, len(shape) + 1):
        for over in itertools.combinations(axes, number):
            coarser = one
            for count in MAP_INTERVALS:
                splines = tuple(min(count, n) if a in over else 0 for a, n in enumerate(room))
                found.setdefault(splines, coarser)
                coarser = splines
    found.pop(one, None)
    return dict(sorted(found.items(), key=lambda item: (torch.Size(_sizes(item[0])).numel(), item[0])))


def _sizes(intervals: Sequence[int]) -> tuple[int, ...]:
    """Splines along each axis."""
    return tuple(count + 2 if count else 1 for count in intervals)


def folds(centre: Tensor, edges: Sequence[int]) -> Tensor:
    """Which part of the cross-validation each block belongs to: whole regions, on a slanted chessboard."""
    region = (centre / (REGION_BLOCKS * torch.tensor(edges, dtype=centre.dtype))).floor().long()
    step = torch.tensor([1, 2, 3][: centre.shape[1]])
    return (region * step).sum(1) % FOLDS


def _prediction_error(
    points: Points, rho: float, intervals: tuple[int, ...], shape: tuple[int, ...], fold: Tensor
) -> float:
    """Mean quantile loss of blocks left out, in units of the chance one, deviations held at the rejection."""
    values, splines, errors = points.over(rho), _splines(points.centre, intervals, shape), []
    for part in range(FOLDS):
        unseen = fold == part
        if not bool(unseen.any()) or bool(unseen.all()):
            continue
        found = _low_end(values[~unseen], splines[~unseen], _bends(_sizes(intervals)), points.scatter)
        off = ((values[unseen] - splines[unseen] @ found) / points.scatter).clamp(-REJECTED, REJECTED)
        errors.append(_tilt(off) * off.abs())
    return float(torch.cat(errors).mean()) / CHANCE_LOSS if errors else float("inf")


def _splines(centre: Tensor, intervals: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Products of quadratic B-splines at places in voxels, shape (B, splines): ``intervals + 2`` of them along an axis.

    One spline alone, the constant, along an axis of no interval.
    """
    out = torch.ones(len(centre), 1, dtype=torch.float64)
    for axis, (count, size) in enumerate(zip(intervals, shape, strict=True)):
        if count:
            place = centre[:, axis].double() / max(size - 1, 1) * count
            off = (place[:, None] - (torch.arange(count + 2) - 0.5)).abs()
            spline = torch.where(off < 0.5, 0.75 - off.square(), 0.5 * (1.5 - off).clamp_min(0).square())
            out = (out[:, :, None] * spline[:, None, :]).flatten(1)
    return out


@cache
def _bends(sizes: tuple[int, ...]) -> Tensor:
    """Matrix of the sum of squared second differences of neighbouring coefficients, and a little of the first ones.

    Second differences leave slopes as they are: the map goes on where no block tells. The first keep it bounded.
    """
    count = torch.Size(sizes).numel()
    out = torch.zeros(count, count, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        along = torch.eye(size, dtype=torch.float64)
        for order, share in ((1, STIFF), (2, 1.0)):
            difference = along.diff(n=order, dim=0)
            square = share * difference.T @ difference
            before, behind = (torch.eye(torch.Size(part).numel()) for part in (sizes[:axis], sizes[axis + 1 :]))
            out += torch.kron(torch.kron(before.double(), square), behind.double())
    return out
