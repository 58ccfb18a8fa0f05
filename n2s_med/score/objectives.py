"""Training objectives of the score network, each as the squared error per voxel.

``y`` is noisy data, ``sigma_a`` the perturbation (never the measurement noise ``sigma``). With correlated
noise ``Σ = L Lᵀ`` the perturbation is ``σ_a L u``, ``u`` white, and the network learns ``R = Σ s``: what is
to be added to the data. (Learning ``Lᵀ s`` and colouring it afterwards weights frequencies that ``L`` then
removes, and makes ``L`` amplify the network's bias; it scored half a dB less.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

Function = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """``L`` of white noise."""
    return x


@dataclass(frozen=True)
class Objective(ABC):
    """A loss over perturbed data.

    Parameters
    ----------
    sigma_a
        Perturbation, in the units of the data.
    """

    sigma_a: float

    def perturbed(self, y: Tensor, colored: Tensor) -> Tensor:
        """What the network is shown: ``y + σ_a L u``, from data and coloured noise ``L u``."""
        return y + self.sigma_a * colored

    @abstractmethod
    def error(self, y: Tensor, v: Tensor, score: Tensor, colored: Tensor) -> Tensor:
        """Squared error per voxel of the network's answer ``score`` to ``v``."""

    @property
    def scale(self) -> float:
        """Factor on the learned score that undoes the blur of the perturbation, for unit Gaussian noise.

        ``E[x | y_a] = y_a + (1 + σ_a²) Σ R(y_a)`` exactly.
        """
        return 1 + self.sigma_a**2

    def loss(self, score: Function, y: Tensor, white: Tensor, color: Function = identity) -> Tensor:
        """Squared error per voxel of a score function, for white noise ``u`` and the operator ``L``."""
        colored = color(white)
        v = self.perturbed(y, colored)
        return self.error(y, v, score(v), colored)


class ArDae(Objective):
    """``|L u + σ_a R(y + σ_a L u)|²`` (Lim et al., ICML 2020, eq. 6; Noise2Score, eq. 9, for L = 1).

    ``R`` is ``Σ`` times the score of ``y + σ_a L u``, with ``Σ = L Lᵀ``.
    """

    def error(self, y: Tensor, v: Tensor, score: Tensor, colored: Tensor) -> Tensor:  # noqa: ARG002
        """Squared error per voxel."""
        return (colored + self.sigma_a * score).square()


class Dsm(Objective):
    """``|y - D(y + σ_a L u)|²`` with ``D(v) = v + σ_a² R(v)`` (Vincent 2011, eq. 9).

    It equals ``σ_a²`` times the loss of :class:`ArDae`: the same minimiser, gradients scaled.
    """

    def error(self, y: Tensor, v: Tensor, score: Tensor, colored: Tensor) -> Tensor:  # noqa: ARG002
        """Squared error per voxel."""
        return (y - (v + self.sigma_a**2 * score)).square()


class TotalUnitNoise(Objective):
    """AR-DAE on ``v = (y + s L u) / sqrt(1 + s²)``, whose noise is one in all, as at inference.

    The minimiser is ``Σ`` times the score of ``v``; nothing has to be undone, and ``s`` may be as large as
    one. But the signal is learned at ``1/sqrt(1 + s²)`` of its range, so on a single scan the extremes are
    never seen.
    """

    @property
    def norm(self) -> float:
        """Standard deviation of unit noise and perturbation together."""
        return math.sqrt(1 + self.sigma_a**2)

    def perturbed(self, y: Tensor, colored: Tensor) -> Tensor:
        """``(y + s L u) / sqrt(1 + s²)``."""
        return (y + self.sigma_a * colored) / self.norm

    def error(self, y: Tensor, v: Tensor, score: Tensor, colored: Tensor) -> Tensor:  # noqa: ARG002
        """Squared error per voxel."""
        return (colored + self.sigma_a / self.norm * score).square()

    @property
    def scale(self) -> float:
        """One."""
        return 1.0


OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {"ar-dae": ArDae, "dsm": Dsm, "total-unit-noise": TotalUnitNoise}
)
"""The objectives by the name that a configuration gives them."""


def annealed(first: float, last: float, progress: float) -> float:
    """``σ_a`` of the paper at ``progress`` in [0, 1]: geometric from ``first`` down to ``last``.

    Noise2Score, section 4: ``σ_a`` falls from 0.1 to 0.001 for intensities in [0, 1].
    """
    return float(first * (last / first) ** min(max(progress, 0.0), 1.0))
