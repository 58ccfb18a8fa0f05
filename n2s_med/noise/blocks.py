"""Blocks of a volume in cosine frequencies: what the noise is measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from n2s_med.errors import InputError
from n2s_med.noise.correlation import cosines
from n2s_med.noise.values import unravelled

if TYPE_CHECKING:
    from n2s_med.noise.variation import Variation

EDGE, FINE_EDGE = 8, 5
"""Edge of a block in voxels, and of a small one for small organs; shorter axes are taken whole."""

FEW_VOXELS, PLENTY = 200, 4_000
"""Blocks with fewer voxels, of thick slices or a single one, are twice as wide where the volume holds plenty."""

MOST_BLOCKS = 8_000
"""Blocks looked at; more do not sharpen the estimate."""

CLIPPED = (0.02, 0.3)
"""A block with more voxels than this at the lowest or highest value of the volume is clipped: a Gaussian cut
off at 2 % loses 3 % of its variance, at 30 % half of it. The second share holds where the first leaves too
few blocks."""

THIN = 3
"""Slices of a block, up to which their own means are not looked at: thick slices drift against each other, and a
frequency along so few is far from the next one, so that its neighbours do not tell."""

COUNT_GAP = 0.4
"""Where the lowest value is zero and the next one in the block is so many of its standard deviations away, zero
is a count as good as any: at the few counts that leave 2 % of zeros, one count is half a standard deviation."""

ENOUGH = 48
"""Blocks that must be left when some are set aside."""

FEWEST_BLOCKS = 24
"""Blocks without which there is no estimate."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of one volume.

    Attributes
    ----------
    mean
        Mean intensity of each block, shape (B,).
    centre
        Its centre in voxels, shape (B, number of axes).
    skewness
        Third central moment of its values over the 3/2th power of the second, shape (B,).
    energy
        Squared cosine coefficients, shape (B, F), in squared intensity; orthonormal, so white noise of
        variance V has energy V at every frequency.
    frequency
        Distance of each coefficient from the origin, in units of the highest frequency along an axis.
    shape
        Edges of a block.
    """

    mean: Tensor
    centre: Tensor
    skewness: Tensor
    energy: Tensor
    frequency: Tensor
    shape: tuple[int, ...]

    @property
    def parity(self) -> Tensor:
        """Which half of the frequencies each belongs to, as on a chessboard."""
        grid = torch.meshgrid(*(torch.arange(n) for n in self.shape), indexing="ij")
        return (torch.stack(grid).sum(0).flatten() % 2).bool()

    @property
    def varying(self) -> Tensor:
        """Boolean, shape (F,): all frequencies but the origin and, of :data:`THIN` blocks, the means of slices."""
        return ~means(self.shape).flatten()

    def less(self, variation: Variation) -> Blocks:
        """The blocks as if their noise did not vary in space."""
        at = variation.at(self.centre)
        return replace(self, energy=self.energy * (at.median() - at).exp()[:, None].to(self.energy.dtype))

    def __len__(self) -> int:
        return len(self.mean)


def blocks_of(
    y: Tensor,
    valid: Tensor,
    values: Tensor,
    spacing_mm: Sequence[float],
    generator: torch.Generator,
    edge: int = EDGE,
) -> Blocks:
    """Cut overlapping blocks that lie in the valid part and are not clipped.

    Parameters
    ----------
    y
        Volume (X, Y, Z) or (X, Y).
    valid
        Boolean, same shape.
    values
        The valid values, in any order.
    spacing_mm
        Voxel spacing along each axis: blocks are as thick as they are wide, but for two slices at least, and
        wider where that leaves few voxels.
    generator
        Chooses the blocks where there are more than enough.
    edge
        Edge of a block in voxels of the finest axis.
    """
    shape = _edges(y.shape, spacing_mm, edge)
    if math.prod(shape) < FEW_VOXELS and _room(y.shape, twice := _edges(y.shape, spacing_mm, 2 * edge)) > PLENTY:
        shape = twice
    cut, corners = _some(y, valid, values, shape, generator)
    mean = cut.double().mean(1)
    cut = (cut - mean[:, None]).float()
    spectrum = cut.view(-1, *shape)
    for axis, size in enumerate(shape, start=1):
        spectrum = torch.tensordot(spectrum, cosines(size).float(), ([axis], [1])).movedim(-1, axis)
    grid = torch.meshgrid(*(torch.arange(n) / max(n - 1, 1) for n in shape), indexing="ij")
    return Blocks(
        mean=mean,
        centre=corners * torch.tensor([_stride(n) for n in shape]) + (torch.tensor(shape) - 1) / 2,
        skewness=(cut.pow(3).mean(1) / cut.square().mean(1) ** 1.5).double(),
        energy=spectrum.flatten(1).square(),
        frequency=torch.stack(grid).square().sum(0).sqrt().flatten(),
        shape=shape,
    )


def wide_axes(shape: Sequence[int]) -> list[int]:
    """The axes along which a block has more than :data:`THIN` voxels, or more than half of its longest edge."""
    return [axis for axis, size in enumerate(shape) if size > THIN or 2 * size > max(shape)]


def means(shape: Sequence[int]) -> Tensor:
    """Boolean of a block's shape: the frequencies that do not vary along any of the wide axes."""
    unseen = torch.zeros(tuple(shape), dtype=torch.bool)
    unseen[tuple(0 if axis in wide_axes(shape) else slice(None) for axis in range(len(shape)))] = True
    return unseen


def require_enough(count: int) -> None:
    """Refuse to estimate from fewer than :data:`FEWEST_BLOCKS` blocks."""
    if count < FEWEST_BLOCKS:
        raise InputError(
            f"only {count} blocks of the volume show noise, {FEWEST_BLOCKS} are needed to estimate its level",
            remedy="give the level on the command line (--sigma, --gain, --k or --dispersion)",
        )


def _some(
    y: Tensor, valid: Tensor, values: Tensor, shape: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At most :data:`MOST_BLOCKS` blocks drawn from those that are valid and not clipped, and their corners."""
    windows = _windows(y, shape)
    room = windows.shape[: y.ndim]
    if len(values) == y.numel():
        number = torch.randperm(math.prod(room), generator=generator)
    else:
        whole = valid
        for axis, edge in enumerate(shape):
            whole = whole.unfold(axis, edge, _stride(edge)).all(-1)
        whole = whole.flatten().nonzero()[:, 0]
        number = whole[torch.randperm(len(whole), generator=generator)]
    corners = torch.stack(unravelled(number[: 3 * MOST_BLOCKS], room), dim=1)
    extremes = values.aminmax() if len(values) else (y.new_zeros(()), y.new_zeros(()))
    for most in CLIPPED:
        taken, kept = [], 0
        for part in torch.split(corners, MOST_BLOCKS):
            cut = windows[tuple(part.T)].flatten(1)
            keep = _unclipped(cut, extremes, most).nonzero()[: MOST_BLOCKS - kept, 0]
            taken.append((cut[keep], part[keep]))
            kept += len(keep)
            if kept == MOST_BLOCKS:
                break
        if kept >= ENOUGH:
            break
    blocks, places = (torch.cat(parts) for parts in zip(*taken, strict=True))
    return blocks, places


def _edges(shape: Sequence[int], spacing_mm: Sequence[float], edge: int) -> tuple[int, ...]:
    finest = min((s for s, n in zip(spacing_mm, shape, strict=True) if n > 1), default=1.0)
    return tuple(min(n, max(2, round(edge * finest / s)), edge) for s, n in zip(spacing_mm, shape, strict=True))


def _room(shape: Sequence[int], edges: Sequence[int]) -> int:
    """Number of blocks that the volume holds."""
    return math.prod((n - edge) // _stride(edge) + 1 for n, edge in zip(shape, edges, strict=True))


def _unclipped(cut: Tensor, extremes: tuple[Tensor, Tensor], most: float) -> Tensor:
    """Which rows of ``cut`` vary and hold few of the lowest and the highest value of the volume."""
    varies = cut.amax(1) > cut.amin(1)
    at_low, at_high = ((cut == end).float().mean(1) for end in extremes)
    keep = varies & (at_high <= most)
    clipped = keep & (at_low > most)
    keep[clipped] = False
    if extremes[0] == 0 and bool(clipped.any()):
        keep[clipped] = _zero_is_a_count(cut[clipped])
    return keep


def _zero_is_a_count(cut: Tensor) -> Tensor:
    least = cut.where(cut > 0, torch.inf).amin(1)
    return least > COUNT_GAP * cut.std(1)


def _stride(edge: int) -> int:
    return max(1, edge // 2)


def _windows(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, edge in enumerate(shape):
        volume = volume.unfold(axis, edge, _stride(edge))
    return volume
