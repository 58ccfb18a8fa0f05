"""Whole counts where they are few: what sums of neighbours tell, and regional means as the data have them.

At a count or two a voxel the unit-noise transform no longer makes unit noise, and a score network flattens what it
sees. Sums of neighbouring counts are Poisson counts again, of a larger mean: their denoised volume is trustworthy
where that of single counts is not. One step of expectation maximisation (Shepp & Vardi 1982) makes an estimate agree
with it, and a second ratio, of Gaussian means, gives regions the mean that the data have there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from n2s_med.regions import Region, grown, slabs, within

FEW = (2.0, 5.0)
"""Mean counts between which single counts begin to be trusted; below the first, sums of neighbours decide."""

STEPS = 2
"""Steps towards the denoised sums."""

NEAR, REGION, CUT = 2.0, 3.0, 3
"""Gaussian SD in voxels of a neighbourhood whose mean count is told and of a region whose mean is kept; where both
are cut off, in SDs."""

LEAST = 1e-6
"""Counts below which no ratio is formed."""

MARGIN = int(CUT * (NEAR + REGION)) + STEPS * 2
"""Planes around a slab on which its values depend."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Takes counts and where they are valid, and gives their denoised mean."""


def few(x_hat: Tensor, valid: Tensor) -> bool:
    """Whether any valid neighbourhood has so few counts that their sums are to be asked."""
    return bool((_trust(x_hat * valid, valid.float())[valid] < 1).any())


def denoised_sums(counts: Tensor, valid: Tensor, denoise: Denoise) -> tuple[Tensor, Tensor]:
    """Denoise the sums over every 2 x 2 x 2 voxels (along axes that have two).

    Sums that share no voxel are independent: each way to place the blocks gives a volume of its own, half as long.

    Parameters
    ----------
    counts
        Whole counts (X, Y, Z) or (X, Y); 0 where not valid.
    valid
        Boolean, same shape.
    denoise
        The denoiser of one such volume.

    Returns
    -------
    tuple of Tensor
        The denoised sums, one voxel shorter along each summed axis, and where they are valid.
    """
    sums, whole = _sums(counts), ~_sums((~valid).float()).bool()
    for offset in itertools.product(*((0, 1) if n > 1 else (0,) for n in counts.shape)):
        own = tuple(slice(o, None, 2 if n > 1 else 1) for o, n in zip(offset, counts.shape, strict=True))
        block, inside = sums[own], whole[own]
        if inside.any() and block[inside].min() < block[inside].max():
            sums[own] = denoise(block.contiguous(), inside)
    return sums, whole


def regained(
    x_hat: Tensor, counts: Tensor, valid: Tensor, sums: tuple[Tensor, Tensor] | None, planes: int
) -> Iterator[tuple[Region, Tensor]]:
    """An estimate that agrees with the denoised sums where counts are few, and with the data's regional means.

    Parameters
    ----------
    x_hat, counts
        Denoised and noisy counts.
    valid
        Where they are valid.
    sums
        Of :func:`denoised_sums`, or ``None`` where nothing is :func:`few`.
    planes
        Planes that are worked on at once; the result does not depend on them.

    Yields
    ------
    tuple of Region and Tensor
        A region and the estimate there, in counts.
    """
    shape = x_hat.shape
    for core in slabs(shape, planes):
        outer = grown(core, shape, (0,) * (len(shape) - 1) + (MARGIN,))
        inside = valid[outer].float()
        estimate = x_hat[outer].clamp_min(LEAST) * inside
        if sums is not None:
            cells = tuple(slice(s.start, s.stop - (n > 1)) for s, n in zip(outer, shape, strict=True))
            estimate = _towards(estimate, inside, sums[0][cells], sums[1][cells])
        data = counts[outer] * inside
        estimate = estimate * (_mean(data, REGION) / _mean(estimate, REGION).clamp_min(LEAST))
        yield core, estimate[within(core, outer)]


def _towards(estimate: Tensor, inside: Tensor, sums: Tensor, whole: Tensor) -> Tensor:
    """Steps of expectation maximisation towards the sums, each as far as single counts are not trusted."""
    distrust = 1 - _trust(estimate, inside)
    known = whole.float()
    weight = _spread(known, estimate.shape)
    for _ in range(STEPS):
        ratio = _spread(
            known * sums.clamp_min(0) / _sums(estimate).clamp_min(LEAST), estimate.shape
        ) / weight.clamp_min(1)
        estimate = torch.where(weight > 0, estimate * ratio.clamp_min(LEAST) ** distrust, estimate) * inside
    return estimate


def _trust(x_hat: Tensor, inside: Tensor) -> Tensor:
    """From 0 where the counts of a neighbourhood are few to 1 where they are many."""
    low, high = FEW
    near = _mean(x_hat, NEAR) / _mean(inside, NEAR).clamp_min(LEAST)
    return ((near - low) / (high - low)).clamp(0, 1)


def _mean(volume: Tensor, width: float) -> Tensor:
    """Gaussian mean of neighbourhoods; beyond the volume lies zero."""
    return torch.from_numpy(gaussian_filter(volume.numpy(), width, mode="constant", radius=int(CUT * width)))


def _sums(volume: Tensor) -> Tensor:
    """Sums over two neighbours along every axis that has two."""
    for axis, size in enumerate(volume.shape):
        if size > 1:
            volume = volume.narrow(axis, 0, size - 1) + volume.narrow(axis, 1, size - 1)
    return volume


def _spread(sums: Tensor, shape: Sequence[int]) -> Tensor:
    """What each voxel of a volume of ``shape`` gets of the sums that hold it: the transpose of :func:`_sums`."""
    reach = [(1, 1) if size > 1 else (0, 0) for size in reversed(shape)]
    return _sums(F.pad(sums, [n for pair in reach for n in pair]))
