"""Noise power spectrum of blocks, and from it the variance and the structure of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.noise.blocks import Blocks, means, wide_axes
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.points import REJECTED, Points

FLAT = 0.3
"""Share of the blocks kept in each of the two choices of flat ones at the start."""

BINS = 12
FEWEST_IN_BIN = 40
"""Most intensity bins at the start, and fewest blocks in each."""

CHI2_MEDIAN = 0.4549
"""Median of a squared standard normal."""

UPPER = 0.5
"""Share of the noise power, from the highest frequency down, by which a block's variance is measured."""

LOWEST = 0.25
"""Share of the frequencies, the lowest, that tell structure."""

ROUNDS = 3
"""How often the flat blocks are chosen anew by the spectrum measured on them."""

FEWEST = 24
"""Flat blocks without which a spectrum is not measured anew."""

RESOLVING = 3
"""Rounds in which the correlation behind a spectrum is found: enough for noise whose neighbours
correlate by 0.6, too few for the errors of single frequencies, and what structure there is at the lowest, to grow."""

MOST_CHANGE = 4.0
"""Factor by which a frequency changes in one of them, at most."""


@dataclass(frozen=True)
class Spectrum:
    """The noise's power at the frequencies of a block.

    Attributes
    ----------
    correlation
        The correlation that brings about the power measured.
    power
        The power that it gives blocks, relative, of mean one, shape (F,): voxels of unit variance.
    """

    correlation: Correlation
    power: Tensor


def noise_spectrum(blocks: Blocks, signed: bool) -> Spectrum:
    """Noise power spectrum.

    Structure adds energy, and most at low frequencies. So at first flat blocks are those with the least energy
    among blocks of like intensity and, of these, with the least of it at low frequencies. Intensities without
    any flat block spoil that choice; so next the blocks are taken whose variance is the least that a noise law
    admits at their intensity, and which that spectrum explains. Blocks are chosen by the frequencies of one
    parity and the spectrum of the other parity is measured on them, in turn, so that the choice does not pull
    the measured power down.
    """
    power = _first(blocks)
    for _ in range(ROUNDS):
        power = _again(blocks, power, signed)
    return _resolved(power, blocks.shape)


def _resolved(measured: Tensor, shape: tuple[int, ...]) -> Spectrum:
    """The correlation whose noise would give blocks the spectrum measured.

    A block ends, so its cosine frequencies leak into each other; neighbours are averaged, and the origin, which is the
    block's own mean, is not seen. All three flatten the spectrum, by a third at the highest frequencies of noise whose
    neighbours correlate by 0.6. So each frequency is raised or lowered by the ratio of what was measured to what
    noise of the correlation found so far would have shown, again and again (as Richardson and Lucy do).
    """
    wanted = measured.clamp_min(torch.finfo(torch.float64).tiny)
    spectrum = wanted
    for _ in range(RESOLVING):
        correlation = Correlation.from_power(spectrum.view(shape))
        power = correlation.block_power(shape).flatten()
        ratio = wanted / _smoothed(power, shape).clamp_min(torch.finfo(torch.float64).tiny)
        spectrum = spectrum * ratio.clamp(1 / MOST_CHANGE, MOST_CHANGE)
        spectrum = spectrum / spectrum.mean()
    return Spectrum(correlation, power)


def points_of(blocks: Blocks, power: Tensor, seen: Tensor | None = None) -> Points:
    """The blocks as points, by the frequencies ``seen`` (all but the origin by default)."""
    seen = blocks.varying if seen is None else seen
    upper = _upper(blocks, power, seen)
    variance = _variance(blocks, power, upper)
    halves = torch.stack([_variance(blocks, power, upper[blocks.parity[upper] == p]) for p in (False, True)], dim=1)
    low = seen & (blocks.frequency <= blocks.frequency.quantile(LOWEST))
    structure = _sums(blocks, low, 1 / power) / (int(low.sum()) * variance)
    degrees = _degrees(power[upper])
    spread = (2 / max(int(low.sum()), 1) + 2 / degrees) ** 0.5  # of a ratio of two variances of noise alone
    top, middle = _split(power, upper)
    tilt = _variance(blocks, power, middle) / _variance(blocks, power, top)
    tilt_spread = (2 / _degrees(power[top]) + 2 / _degrees(power[middle])) ** 0.5
    return Points(
        mean=blocks.mean,
        log_variance=variance.log(),
        halves=halves.log(),
        structure=structure,
        flat=(structure <= 1 + REJECTED * spread) & (tilt <= 1 + REJECTED * tilt_spread),
        skewness=blocks.skewness,
        centre=blocks.centre,
        degrees=degrees,
    )


def _upper(blocks: Blocks, power: Tensor, seen: Tensor) -> Tensor:
    """The highest of the frequencies seen that hold :data:`UPPER` of their noise power."""
    order = blocks.frequency.argsort(descending=True)
    order = order[seen[order]]
    return order[power[order].cumsum(0) <= UPPER * power[seen].sum()]


def _split(power: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The upper frequencies in two, of like power: the highest, and those below."""
    above = power[upper].cumsum(0) <= power[upper].sum() / 2
    return upper[above], upper[~above]


def _degrees(power: Tensor) -> float:
    """Degrees of freedom of a sum of squares of these variances (Satterthwaite)."""
    return float(power.sum() ** 2 / power.square().sum())


def _variance(blocks: Blocks, power: Tensor, used: Tensor) -> Tensor:
    variance = _sums(blocks, used, torch.ones_like(power)) / power[used].sum()
    return variance.clamp_min(torch.finfo(torch.float64).tiny)


def _sums(blocks: Blocks, used: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum over the frequencies used of each block's energy, shape (B,)."""
    taken = torch.zeros_like(weight)
    taken[used] = weight[used]
    return (blocks.energy @ taken.to(blocks.energy.dtype)).double()


def _first(blocks: Blocks) -> Tensor:
    bins = blocks.mean.argsort().tensor_split(min(BINS, max(1, len(blocks) // FEWEST_IN_BIN)))
    middle = blocks.frequency[blocks.varying].quantile(0.5)
    power = torch.ones(blocks.energy.shape[1], dtype=torch.float64)
    for parity in (False, True):
        seen = (blocks.parity == parity) & blocks.varying
        total = blocks.energy[:, seen].mean(1)
        quiet = torch.cat([index[total[index].argsort()[: _share(index)]] for index in bins])
        low = blocks.energy[quiet][:, seen & (blocks.frequency <= middle)].mean(1)
        flat = quiet[(low / total[quiet]).argsort()[: _share(quiet)]]
        measured = blocks.parity != parity
        energy = blocks.energy[flat] / blocks.energy[flat][:, measured & blocks.varying].mean(1, keepdim=True)
        power[measured] = _median_power(energy[:, measured])
    return _smoothed(power, blocks.shape)


def _again(blocks: Blocks, power: Tensor, signed: bool) -> Tensor:
    """The spectrum on the blocks that agree with the last one and with the least variance admitted."""
    new = power.clone()
    for parity in (False, True):
        seen = (blocks.parity == parity) & blocks.varying
        points = points_of(blocks, power, seen)
        above = points.log_variance - points.envelope(signed)
        agreed = (above <= 0) & (above >= -REJECTED * points.scatter) & (points.structure <= 1) & points.flat
        if int(agreed.sum()) < FEWEST:
            return power
        measured = blocks.parity != parity
        energy = blocks.energy[agreed][:, measured] / points.log_variance[agreed].exp()[:, None].float()
        new[measured] = _median_power(energy)
    return _smoothed(new, blocks.shape)


def _median_power(energy: Tensor) -> Tensor:
    return energy.double().quantile(0.5, dim=0) / CHI2_MEDIAN


def _share(index: Tensor) -> int:
    return max(1, int(FLAT * len(index)))


def _smoothed(power: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Average neighbouring frequencies, take those of means from their neighbours, and normalise to mean one."""
    grid = power.view(shape).clone()
    across = wide_axes(shape)
    nearest = [tuple(int(a == axis) if a in across else slice(None) for a in range(len(shape))) for axis in across]
    grid[means(shape)] = torch.stack([grid[n].flatten() for n in nearest]).mean(0)
    for axis, size in enumerate(shape):
        if size > 2:
            index = torch.arange(-1, size + 1).clamp(0, size - 1)
            wide = grid.index_select(axis, index)
            grid = (wide.narrow(axis, 0, size) + 2 * wide.narrow(axis, 1, size) + wide.narrow(axis, 2, size)) / 4
    return (grid / grid.mean()).flatten()
