"""The noise of one scan: its law and level, its correlation, and whether the values are counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.noise.base import NoiseModel
from n2s_med.noise.correlation import Correlation


@dataclass(frozen=True)
class ScanNoise:
    """The noise of one scan.

    Attributes
    ----------
    law
        Law with its level, in the units of the scan.
    correlation
        Correlation between voxels in the unit-noise domain.
    quantum
        Width of the lattice that the values lie on where it is no finer than the noise (whole counts of a
        Poisson law), in the units of the scan; 0 where values are as good as continuous.
    floor
        Lowest intensity for which the law was measured. Below lies air, whose noise a power law cannot tell;
        such voxels are left as they are.
    """

    law: NoiseModel
    correlation: Correlation
    quantum: float = 0.0
    floor: float = -math.inf

    def admits(self, y: Tensor) -> Tensor:
        """Boolean mask of the values to which the law applies; NaN stays in it, to be refused."""
        supported = self.law.support(y)
        return supported if self.floor == -math.inf else supported & ~(y < self.floor)

    def dequantised(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """``y`` spread evenly over its lattice's cells, so that its density has a score."""
        if self.quantum == 0:
            return y
        spread = torch.rand(y.shape, generator=generator, dtype=y.dtype) - 0.5
        return (y + self.quantum * spread).clamp_min(-0.375 * self.quantum)

    def variance(self, y: Tensor) -> Tensor:
        """Noise variance at ``y``, with that of :meth:`dequantised`."""
        return self.law.variance(y.clamp_min(0) if self.law.variance_power else y) + self.quantum**2 / 12
