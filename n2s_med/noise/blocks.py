"""Blocks of a volume in cosine frequencies, and their noise power spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 8
"""Edge of a block in voxels; shorter axes are taken whole."""

MOST_BLOCKS = 12_000
"""Blocks looked at; more do not sharpen the estimate."""

CLIPPED = 0.3
"""A block with more voxels than this at the lowest or highest value of the volume is clipped."""

CLIPPED_AT_ZERO = 0.9
"""The same where the lowest value is zero, which may be a count as good as any."""

FLAT = 0.3
"""Share of the blocks kept in each of the two choices of flat ones."""

BINS = 12
FEWEST_IN_BIN = 40
"""Most intensity bins, and fewest blocks in each."""

CHI2_MEDIAN = 0.4549
"""Median of a squared standard normal."""

UPPER = 0.5
"""Share of the noise power, from the highest frequency down, by which a block's variance is measured."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of one volume.

    Attributes
    ----------
    mean
        Mean intensity of each block, shape (B,).
    energy
        Squared cosine coefficients, shape (B, F), in squared intensity; orthonormal, so white noise of
        variance V has energy V at every frequency.
    frequency
        Distance of each coefficient from the origin, in units of the highest frequency along an axis.
    shape
        Edges of a block.
    """

    mean: Tensor
    energy: Tensor
    frequency: Tensor
    shape: tuple[int, ...]

    @property
    def parity(self) -> Tensor:
        """Which half of the frequencies each belongs to, as on a chessboard."""
        grid = torch.meshgrid(*(torch.arange(n) for n in self.shape), indexing="ij")
        return (torch.stack(grid).sum(0).flatten() % 2).bool()


def blocks_of(y: Tensor, valid: Tensor, spacing_mm: Sequence[float], generator: torch.Generator) -> Blocks:
    """Cut overlapping blocks that lie in the valid part and are not clipped.

    Parameters
    ----------
    y
        Volume (X, Y, Z) or (X, Y).
    valid
        Boolean, same shape.
    spacing_mm
        Voxel spacing along each axis: blocks are as thick as they are wide, but for two slices at least.
    generator
        Chooses the blocks where there are more than enough.
    """
    finest = min(s for s, n in zip(spacing_mm, y.shape, strict=True) if n > 1)
    shape = tuple(min(n, max(2, round(EDGE * finest / s)), EDGE) for s, n in zip(spacing_mm, y.shape, strict=True))
    inside = y[valid]
    low, high = inside.min(), inside.max()
    corners = _windows(valid, shape).flatten(-len(shape)).all(-1).nonzero()
    order = torch.randperm(len(corners), generator=generator)[: 3 * MOST_BLOCKS]
    cut = _windows(y, shape)[tuple(corners[order].T)].double().flatten(1)
    clipped = torch.maximum((cut == low).double().mean(1), (cut == high).double().mean(1))
    cut = cut[(clipped <= (CLIPPED if low != 0 else CLIPPED_AT_ZERO)) & (cut.amax(1) > cut.amin(1))]
    cut = cut[:MOST_BLOCKS]
    spectrum = cut.view(-1, *shape)
    for axis, size in enumerate(shape, start=1):
        spectrum = torch.tensordot(spectrum, _cosines(size), ([axis], [1])).movedim(-1, axis)
    grid = torch.meshgrid(*(torch.arange(n) / max(n - 1, 1) for n in shape), indexing="ij")
    frequency = torch.stack(grid).square().sum(0).sqrt().flatten()
    return Blocks(cut.mean(1), spectrum.flatten(1).square(), frequency, shape)


def _windows(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, edge in enumerate(shape):
        volume = volume.unfold(axis, edge, max(1, edge // 2))
    return volume


def _cosines(size: int) -> Tensor:
    """Orthonormal DCT-II matrix, frequencies by samples."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * k * (n + 0.5) / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def noise_spectrum(blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Noise power spectrum, and how much structure each block holds.

    Structure adds energy, and most at low frequencies. So flat blocks are those with the least energy among
    blocks of like intensity and, of these, with the least of it at low frequencies. They are chosen by the
    frequencies of one parity and the spectrum of the other parity is measured on them, in turn, so that the
    choice does not pull the measured power down.

    Returns
    -------
    power
        Relative power at each frequency, mean one, shape (F,).
    structure
        Low-frequency energy of each block over what its noise explains, shape (B,); about one where flat.
    """
    bins = blocks.mean.argsort().tensor_split(min(BINS, max(1, len(blocks.mean) // FEWEST_IN_BIN)))
    varying = blocks.frequency > 0
    middle = blocks.frequency[varying].quantile(0.5)
    power = torch.ones(blocks.energy.shape[1], dtype=torch.float64)
    for parity in (False, True):
        seen = (blocks.parity == parity) & varying
        total = blocks.energy[:, seen].mean(1)
        quiet = torch.cat([index[total[index].argsort()[: _share(index)]] for index in bins])
        low = blocks.energy[quiet][:, seen & (blocks.frequency <= middle)].mean(1)
        flat = quiet[(low / total[quiet]).argsort()[: _share(quiet)]]
        measured = blocks.parity != parity
        energy = blocks.energy[flat] / blocks.energy[flat][:, measured & varying].mean(1, keepdim=True)
        power[measured] = energy[:, measured].quantile(0.5, dim=0) / CHI2_MEDIAN
    power = _smoothed(power, blocks.shape)
    lowest = varying & (blocks.frequency <= blocks.frequency.quantile(0.25))
    explained = variance_of(blocks, power)[:, None] * power
    return power, (blocks.energy / explained)[:, lowest].mean(1)


def degrees_of_freedom(blocks: Blocks, power: Tensor) -> float:
    """Of :func:`variance_of` in a flat block: ``(Σ P)² / Σ P²`` over the frequencies used (Satterthwaite)."""
    used = power[_upper(blocks, power)]
    return float(used.sum() ** 2 / used.square().sum())


def _share(index: Tensor) -> int:
    return max(1, int(FLAT * len(index)))


def variance_of(blocks: Blocks, power: Tensor) -> Tensor:
    """Noise variance of each block from its upper frequencies, those that hold half of the noise power."""
    upper = _upper(blocks, power)
    energy = blocks.energy[:, upper].sum(1) / power[upper].sum()
    return energy.clamp_min(torch.finfo(torch.float64).tiny)


def _upper(blocks: Blocks, power: Tensor) -> Tensor:
    order = blocks.frequency.argsort(descending=True)
    return order[power[order].cumsum(0) <= UPPER * power.sum()]


def _smoothed(power: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average neighbouring frequencies, take the origin from its neighbours, and normalise to mean one."""
    grid = power.view(shape).clone()
    nearest = [tuple(int(a == axis) for a in range(len(shape))) for axis in range(len(shape)) if shape[axis] > 1]
    grid[(0,) * len(shape)] = torch.stack([grid[n] for n in nearest]).mean()
    for axis, size in enumerate(shape):
        if size > 2:
            index = torch.arange(-1, size + 1).clamp(0, size - 1)
            wide = grid.index_select(axis, index)
            grid = (wide.narrow(axis, 0, size) + 2 * wide.narrow(axis, 1, size) + wide.narrow(axis, 2, size)) / 4
    return (grid / grid.mean()).flatten()
