"""Training objectives of the score network, each as the squared error per voxel.

``y`` is noisy data, ``white`` is N(0, I) of the same shape, ``sigma_a`` the perturbation (never the
measurement noise ``sigma``). With correlated noise ``L``, perturb by ``L white``: the network then learns
``g = Lᵀ s`` and the losses keep their form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """``L`` of white noise."""
    return x


class Objective(Protocol):
    """A loss over perturbed data."""

    def loss(self, score: Function, y: Tensor, white: Tensor, color: Function = identity) -> Tensor:
        """Squared error per voxel, same shape as ``y``."""
        ...

    @property
    def scale(self) -> float:
        """Factor on the learned score that undoes the blur of the perturbation, for unit Gaussian noise."""
        ...


@dataclass(frozen=True)
class ArDae:
    """``|u + σ_a R(y + σ_a u)|²`` (Lim et al., ICML 2020, eq. 6; Noise2Score, eq. 9).

    ``R`` is the score of ``y + σ_a u``. For unit Gaussian noise ``E[x | y_a] = y_a + (1 + σ_a²) R(y_a)``
    exactly, whence :attr:`scale`.
    """

    sigma_a: float

    def loss(self, score: Function, y: Tensor, white: Tensor, color: Function = identity) -> Tensor:
        """Squared error per voxel."""
        return (white + self.sigma_a * score(y + self.sigma_a * color(white))).square()

    @property
    def scale(self) -> float:
        """``1 + σ_a²``."""
        return 1 + self.sigma_a**2


@dataclass(frozen=True)
class Dsm:
    """``|y - D(y + σ_a u)|²`` with ``D(v) = v + σ_a² R(v)`` (Vincent 2011, eq. 9), white noise only.

    It equals ``σ_a²`` times the loss of :class:`ArDae`: the same minimiser, gradients scaled.
    """

    sigma_a: float

    def loss(self, score: Function, y: Tensor, white: Tensor, color: Function = identity) -> Tensor:
        """Squared error per voxel."""
        v = y + self.sigma_a * color(white)
        return (y - (v + self.sigma_a**2 * score(v))).square()

    @property
    def scale(self) -> float:
        """``1 + σ_a²``."""
        return 1 + self.sigma_a**2


@dataclass(frozen=True)
class TotalUnitNoise:
    """AR-DAE on ``v = (y + s u) / sqrt(1 + s²)``, whose noise is one in all, as at inference.

    The minimiser is the score of ``v``; nothing has to be undone, and ``s`` may be as large as one. But the
    signal is learned at ``1/sqrt(1 + s²)`` of its range, so on a single scan the extremes are never seen.
    """

    sigma_a: float

    def loss(self, score: Function, y: Tensor, white: Tensor, color: Function = identity) -> Tensor:
        """Squared error per voxel."""
        norm = math.sqrt(1 + self.sigma_a**2)
        v = (y + self.sigma_a * color(white)) / norm
        return (white + self.sigma_a / norm * score(v)).square()

    @property
    def scale(self) -> float:
        """One."""
        return 1.0


OBJECTIVES: Mapping[str, type[ArDae] | type[Dsm] | type[TotalUnitNoise]] = MappingProxyType(
    {"ar-dae": ArDae, "dsm": Dsm, "total-unit-noise": TotalUnitNoise}
)
"""The objectives by the name that a configuration gives them."""


def annealed(first: float, last: float, progress: float) -> float:
    """``σ_a`` of the paper at ``progress`` in [0, 1]: geometric from ``first`` down to ``last``.

    Noise2Score, section 4: ``σ_a`` falls from 0.1 to 0.001 for intensities in [0, 1].
    """
    return float(first * (last / first) ** min(max(progress, 0.0), 1.0))
