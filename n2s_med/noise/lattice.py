"""Whole counts, recognised by the lattice that they lie on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from n2s_med.noise.base import NoiseModel

SNAP = 1.0
"""A gain this near (in logarithm) to the lattice of the values is the lattice: the values are counts."""

FEW_COUNTS = 20
ON_LATTICE = 0.9
"""Values below so many counts are looked at, and the mean cosine from which they are whole counts."""

FEWEST = 24
"""Values without which no lattice is looked for."""


LOOKED_AT = 200_000
"""Values of a volume that a lattice is looked for among, at most."""


def quantum_of(values: Tensor, law: NoiseModel) -> float:
    """Width of the count lattice where ``values`` are whole counts of a Poisson law, else 0."""
    width = lattice_near(values, law.quantum) if law.quantum else 0.0
    return width if width and abs(law.quantum / width - 1) < 0.02 else 0.0


def lattice_near(values: Tensor, gain: float) -> float:
    """Width of the lattice from zero up that ``values`` lie on, within a factor of ``exp(SNAP)`` of ``gain``, or 0.

    The lattice is the widest for which the mean of ``cos(2π y / width)`` over the lowest counts is nearly one:
    its halves and thirds would do as well.
    """
    some = values.double()
    some = some[(some > 0.5 * gain * math.exp(-SNAP)) & (some < FEW_COUNTS * gain)]
    if len(some) < FEWEST:
        return 0.0
    some = some[:: 1 + len(some) // 2_000]

    def concordance(widths: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * some / widths[:, None]).mean(1)

    widths = gain * torch.linspace(-SNAP, SNAP, 4_001, dtype=torch.float64).exp()
    fitting = widths[concordance(widths) > ON_LATTICE]
    if not len(fitting):
        return 0.0
    for reach in (0.02, 1e-3, 5e-5):
        near = fitting[-1] * torch.linspace(1 - reach, 1 + reach, 401, dtype=torch.float64)
        fitting = near[concordance(near).argmax()][None]
    return float(fitting[0])
