"""Blocks as points (mean, log variance, structure), and the robust statistics taken of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from n2s_med.noise.variation import Variation

QUIET = 0.5
"""Share of the blocks of a bin, those with the least structure, that its level rests on."""

LOW_END = 0.15
"""Share of all blocks below the low end of their variances."""

AGREED = 0.1
"""Share of the intensity bins that lie at or below the level first taken: structure lifts the others."""

DENSEST = 0.35
"""Share of the values in the interval by which the mode is found, halving in on it."""

BINS = 12
"""Intensity bins of the variance function."""

FEWEST_IN_BIN = 2
"""Blocks without which an intensity bin says nothing."""

FEWEST_IN_LOG_BIN = 12
"""The same where bins are not evenly filled."""

STEEPEST = 2.0
"""No noise law has a variance that grows faster than with this power of the intensity, or falls."""

SETTLING = 20
"""Rounds of the search for the centre of the flat blocks."""

REJECTED = 3.0
"""Standard deviations beyond which a block counts for nothing."""


RESAMPLES = 24
"""Bootstrap resamples behind an interval."""

REGION_BLOCKS = 2.0
"""Edge of the regions that are resampled, in block edges: blocks overlap, and structure is local."""


@dataclass(frozen=True)
class Points:
    """Blocks as points.

    Attributes
    ----------
    mean
        Mean intensity, shape (B,).
    log_variance
        Log of the noise variance measured in each, shape (B,).
    halves
        The same from either half of the frequencies alone, shape (B, 2): what chooses blocks by the one may
        measure by the other.
    structure
        Low-frequency energy over what the noise explains, shape (B,); about one where flat.
    flat
        Whether that is no more than chance explains, and the energy of the middle frequencies over that of the
        highest no more either, boolean, shape (B,). Fine texture passes the first alone.
    skewness
        Of the values in each, shape (B,).
    centre
        Centre in voxels, shape (B, axes).
    degrees
        Degrees of freedom of each variance.
    rough
        Whether none is flat, and those called so are the least rough ones: their variances are upper bounds.
    """

    mean: Tensor
    log_variance: Tensor
    halves: Tensor
    structure: Tensor
    flat: Tensor
    skewness: Tensor
    centre: Tensor
    degrees: float
    rough: bool = False

    def __len__(self) -> int:
        return len(self.mean)

    def where(self, keep: Tensor) -> Points:
        """Those that ``keep`` (a mask or indices) selects."""
        kept: dict[str, Any] = {f.name: getattr(self, f.name)[keep] for f in fields(self) if f.type == "Tensor"}
        return replace(self, **kept)

    @property
    def scatter(self) -> float:
        """Standard deviation of the log variance of flat blocks: that of a log chi-square, sqrt(2/d)."""
        return math.sqrt(2 / self.degrees)

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All of them together."""
        tensors: dict[str, Any] = {
            f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls) if f.type == "Tensor"
        }
        return replace(parts[0], **tensors)

    def resampled(self, edges: Sequence[int], generator: torch.Generator) -> list[Points]:
        """Bootstrap by regions of the volume, for blocks of these edges."""
        region = (self.centre / (REGION_BLOCKS * torch.tensor(edges))).floor().long()
        _, number = torch.unique(region, dim=0, return_inverse=True)
        members = [(number == r).nonzero()[:, 0] for r in range(int(number.max()) + 1)]
        draws = torch.randint(len(members), (RESAMPLES, len(members)), generator=generator)
        return [self.where(torch.cat([members[r] for r in draw])) for draw in draws.tolist()]

    def less(self, variation: Variation, middle: float | None = None) -> Points:
        """The variation in space taken off, around ``middle`` (its median over the blocks by default)."""
        if variation.is_constant:
            return self
        at = variation.at(self.centre)
        off = at - (at.median() if middle is None else middle)
        return replace(self, log_variance=self.log_variance - off, halves=self.halves - off[:, None])

    def over(self, rho: float) -> Tensor:
        """Log variance over ``mean**rho``."""
        return self.log_variance - (rho * self.mean.abs().log() if rho else 0.0)

    def level(self, rho: float = 0.0) -> Tensor:
        """Log of the noise variance over ``mean**rho`` in these blocks, of like intensity.

        The mode of those with little structure, or what the low end of all of them says if that is less.
        """
        values = self.over(rho)
        quiet = values[self.structure <= self.structure.quantile(QUIET)]
        low_end = values.quantile(LOW_END) - log_chi2_quantile(LOW_END, self.degrees)
        return torch.minimum(mode(quiet), low_end)

    def bins(self) -> list[Points]:
        """The blocks in bins of like intensity, as many in each."""
        return [self.where(index) for index in self.mean.argsort().tensor_split(BINS) if len(index) >= FEWEST_IN_BIN]

    def log_bins(self) -> list[Points]:
        """The blocks in bins of like intensity, evenly spaced in its logarithm; the outermost reach further."""
        x = self.mean.abs().log()
        low, high = x.quantile(0.01), x.quantile(0.99)
        number = ((x - low) / (high - low).clamp_min(1e-12) * BINS).floor().clamp(0, BINS - 1)
        bins = [self.where(number == n) for n in range(BINS)]
        return [b for b in bins if len(b) >= FEWEST_IN_LOG_BIN] or [self]

    def floor(self, rho: float = 0.0) -> Tensor:
        """Log of the noise variance over ``mean**rho`` in the quietest bins: structure only adds."""
        return torch.stack([b.level(rho) for b in self.bins() or [self]]).quantile(AGREED)

    def settled(self, rho: float = 0.0) -> Tensor:
        """Log of the noise variance over ``mean**rho``: the centre of the blocks that agree with the quietest bins.

        Structure that passes for flat only adds. So of these blocks those are taken that lie below the centre by
        one half of their frequencies, and the other half is measured, in turn: ``d/2`` degrees of freedom, and a
        log chi-square of ``d`` has the mean ``-1/d``.
        """
        at = rho * self.mean.abs().log() if rho else torch.zeros_like(self.mean)
        centre = gathered(self.log_variance - at, self.floor(rho), self.scatter)
        found = []
        for chosen in (0, 1):
            seen, measured = self.halves[:, chosen] - at, self.halves[:, 1 - chosen] - at
            low = (seen <= centre) & (seen >= centre - REJECTED * 2**0.5 * self.scatter)
            start = measured[low].median() if bool(low.any()) else centre
            found.append(
                gathered(measured[low], torch.minimum(start, centre), 2**0.5 * self.scatter) + 2 / self.degrees
            )
        return torch.stack(found).mean()

    def envelope(self, signed: bool) -> Tensor:
        """Least log variance at each block's intensity that a noise law admits, shape (B,).

        A bin whose variance lies above that of a brighter one, or above that of a darker one times the squared
        ratio of intensities, holds structure. Intensities that may be negative admit one level only.
        """
        if signed:
            return self.floor().expand(len(self))
        bins = self.bins()
        x = torch.stack([b.mean.abs().log().median() for b in bins])
        v = torch.stack([b.level() for b in bins])
        rise = (x[:, None] - x).clamp_min(0) * STEEPEST
        return interpolated(self.mean.abs().log(), x, (v + rise).amin(1))


def gathered(values: Tensor, centre: Tensor, scatter: float) -> Tensor:
    """Centre of the values near ``centre``, by Tukey's biweight of known scatter."""
    for _ in range(SETTLING):
        weight = biweight(values - centre, scatter)
        if float(weight.sum()) == 0:
            break
        centre = (weight * values).sum() / weight.sum()
    return centre


def interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear through ascending ``x``, constant beyond its ends."""
    if len(x) == 1:
        return y.expand(len(at))
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    share = ((at - x[right - 1]) / (x[right] - x[right - 1]).clamp_min(1e-12)).clamp(0, 1)
    return y[right - 1] + share * (y[right] - y[right - 1])


def mode(values: Tensor) -> Tensor:
    """Half-sample mode: the middle of the interval that is densest, narrowed down again and again."""
    values = values.sort().values
    while (count := max(8, int(len(values) * DENSEST))) < len(values):
        start = int((values[count - 1 :] - values[: len(values) - count + 1]).argmin())
        values = values[start : start + count]
    return values.median()


def log_chi2_quantile(share: float, degrees: float) -> float:
    """Log of the quantile of a chi-square over its mean (Wilson & Hilferty 1931)."""
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1)))
    return 3 * math.log(max(1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees)), 0.05))


def biweight(deviation: Tensor, scatter: float) -> Tensor:
    """Tukey's weights ``(1 - (d/c)²)²`` with ``c`` at :data:`REJECTED` standard deviations."""
    return (1 - (deviation / (REJECTED * scatter)).square().clamp_max(1)).square()
