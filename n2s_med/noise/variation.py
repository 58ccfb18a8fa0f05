"""How the level of the noise varies over the volume: a smooth map, where the blocks show one.

Parallel MR has its g-factor, CT the length of the rays' way through the body, PET the axial sensitivity of its
detectors. The log of the noise variance over the law's variance function is fitted by quadratic splines,
robustly and with a penalty on its slopes. Finer and coarser splines are compared by cross-validation on whole
regions, so that a map is taken only if it predicts blocks that it has not seen better than one level does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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

SLOPE = 0.01
"""Penalty on the difference of neighbouring coefficients, in shares of the weight of the blocks behind one."""

EXPLAINED = 1.2
"""Loss of one level, in units of the chance one, below which there is nothing to explain."""

GAIN = 0.9
"""A map must lower the cross-validated loss to this share of that of one level, and each further candidate
to this share of that of the best so far."""

LEAST_RANGE = 1.1
"""Ratio of standard deviations over the blocks (95th over 5th percentile) below which there is no map."""

ROUNDS = 12


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

    def field(self) -> Tensor:
        """Values at every voxel, float32 of the volume's shape."""
        field = self.coefficients
        for axis, (intervals, size) in enumerate(zip(self.intervals, self.shape, strict=True)):
            splines = _splines(torch.arange(size, dtype=torch.float64)[:, None], (intervals,), (size,))
            field = torch.tensordot(splines, field, ([1], [axis])).movedim(0, axis)
        return field.float()


def variation_of(points: Points, rho: float, shape: Sequence[int], edges: Sequence[int], seed: int) -> Variation:
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
    fold = _folds(some.centre, edges)
    best, least = one, _prediction_error(some, rho, one, volume, fold)
    if least < EXPLAINED:
        return fitted(points, rho, one, volume)
    for splines in _candidates(volume, edges):
        error = _prediction_error(some, rho, splines, volume, fold)
        if error < GAIN * least:
            best, least = splines, error
    found = fitted(points, rho, best, volume)
    low, high = (found.at(points.centre) / 2).exp().quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return found if high > LEAST_RANGE * low else fitted(points, rho, one, volume)


def fitted(points: Points, rho: float, intervals: tuple[int, ...], shape: tuple[int, ...]) -> Variation:
    """The variation by some splines: a regression of the low end, as structure only adds."""
    values, splines = points.over(rho), _splines(points.centre, intervals, shape)
    sizes = _sizes(intervals)
    penalty = _slopes(sizes) * SLOPE / splines.shape[1]
    found = values.quantile(LOW_END).expand(splines.shape[1])
    for _ in range(ROUNDS):
        off = values - splines @ found
        weight = _tilt(off) * points.scatter / off.abs().clamp_min(CLOSE * points.scatter)
        weighted = splines * weight[:, None]
        found = torch.linalg.lstsq(weighted.T @ splines + penalty * weight.sum(), weighted.T @ values).solution
    return Variation(found.reshape(sizes) - log_chi2_quantile(LOW_END, points.degrees), shape)


def _tilt(off: Tensor) -> Tensor:
    """Slope of the loss whose least value is at the low end of the values (Koenker & Bassett 1978)."""
    return torch.where(off > 0, LOW_END, 1 - LOW_END)


def _candidates(shape: tuple[int, ...], edges: Sequence[int]) -> list[tuple[int, ...]]:
    """Splines to compare, from few to many: profiles along one axis, maps over some, maps over all axes."""
    room = [size // edge if size > edge else 0 for size, edge in zip(shape, edges, strict=True)]
    axes = range(len(shape))
    profiles = [tuple(min(n, MOST_INTERVALS) if a == axis else 0 for a in axes) for axis, n in enumerate(room)]
    maps = [
        tuple(min(count, n) if a in over else 0 for a, n in enumerate(room))
        for count in MAP_INTERVALS
        for number in range(1, len(shape) + 1)
        for over in itertools.combinations(axes, number)
    ]
    found = {c for c in (*profiles, *maps) if any(c)}
    return sorted(found, key=lambda c: (torch.Size(_sizes(c)).numel(), c))


def _sizes(intervals: Sequence[int]) -> tuple[int, ...]:
    """Splines along each axis."""
    return tuple(count + 2 if count else 1 for count in intervals)


def _folds(centre: Tensor, edges: Sequence[int]) -> Tensor:
    """Which part of the cross-validation each block belongs to: whole regions, on a slanted chessboard."""
    region = (centre / (REGION_BLOCKS * torch.tensor(edges, dtype=centre.dtype))).floor().long()
    step = torch.tensor([1, 2, 3][: centre.shape[1]])
    return (region * step).sum(1) % FOLDS


def _prediction_error(
    points: Points, rho: float, intervals: tuple[int, ...], shape: tuple[int, ...], fold: Tensor
) -> float:
    """Mean quantile loss of blocks left out, in units of the chance one, deviations held at the rejection."""
    errors = []
    for part in range(FOLDS):
        left_out = fold == part
        if not bool(left_out.any()) or bool(left_out.all()):
            continue
        seen, unseen = points.where(~left_out), points.where(left_out)
        low_end = fitted(seen, rho, intervals, shape).at(unseen.centre) + log_chi2_quantile(LOW_END, points.degrees)
        off = ((unseen.over(rho) - low_end) / points.scatter).clamp(-REJECTED, REJECTED)
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


def _slopes(sizes: Sequence[int]) -> Tensor:
    """Matrix of the sum of squared differences of neighbouring coefficients."""
    count = torch.Size(sizes).numel()
    index = torch.arange(count).view(tuple(sizes))
    out = torch.zeros(count, count, dtype=torch.float64)
    for axis, size in enumerate(sizes):
        for a, b in itertools.pairwise(range(size)):
            i, j = index.select(axis, a).flatten(), index.select(axis, b).flatten()
            out[i, i] += 1
            out[j, j] += 1
            out[i, j] -= 1
            out[j, i] -= 1
    return out
