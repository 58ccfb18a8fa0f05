"""Poisson noise: counts, and intensities proportional to counts (emission tomography)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from n2s_med.noise.base import NoiseModel, Parameter, require_factor, require_nonnegative, require_positive

ANSCOMBE = 3 / 8


@dataclass(frozen=True)
class Poisson(NoiseModel):
    """``y = gain * Poisson(x / gain)``.

    Papers write the score over counts ``z = y / gain``; here it is per unit of ``y``: ``s_z = gain * s_y``.

    Parameters
    ----------
    gain
        Intensity of one count (ζ), in the units of ``y``; a scalar or a map. Raw counts have gain 1.
    """

    gain: Parameter
    name: ClassVar[str] = "poisson"
    fixed_power: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        require_positive(self.name, gain=self.gain)

    @property
    def variance_power(self) -> float:
        """Exponent of the variance function: 1."""
        return 1.0

    @property
    def quantum(self) -> float:
        """The gain; the median of a map."""
        return self.parameters["gain"]

    @property
    def shift(self) -> Parameter:
        """Anscombe's 3/8 of a count."""
        return ANSCOMBE * self.gain

    def tweedie_from_unit(self, y: Tensor, score_u: Tensor) -> Tensor:
        """``(z + 1/2) exp(s_u/sqrt(z + 3/8) - 1/(2 (z + 3/8)))`` counts: finite at zero, no shift needed."""
        return self.tweedie(y, self.score_from_unit(y, score_u))

    def check(self, y: Tensor) -> None:
        """Refuse NaN, infinity and negative values."""
        super().check(y)
        require_nonnegative(self.name, y)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``x``."""
        self.check(x)
        return self.gain * torch.poisson(x / self.gain, generator=generator)

    def variance(self, x: Tensor) -> Tensor:
        """``gain * x``."""
        return self.gain * x

    @classmethod
    def of_dispersion(cls, power: float, dispersion: Parameter) -> Poisson:  # noqa: ARG003 - the power is fixed
        """Poisson noise of this gain."""
        return cls(dispersion)

    def scaled(self, factor: float) -> Poisson:
        """``gain`` scales with the intensities."""
        require_factor(factor)
        return Poisson(self.gain * factor)

    def tweedie(self, y: Tensor, score: Tensor) -> Tensor:
        """``(y + gain/2) exp(gain s)`` (Noise2Score, table 1)."""
        return (y + self.gain / 2) * torch.exp(self.gain * score)

    def posterior_mean(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """``gain exp(E + Var/2)`` with the posterior moments of ``ln(x/gain)``, as if log-normal."""
        mean, variance = self._log_moments(y, score, score_derivative)
        return self.gain * torch.exp(mean + variance / 2)

    def posterior_variance(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """Variance of the log-normal posterior: ``E[x]² (exp(Var[ln x]) - 1)``."""
        mean, variance = self._log_moments(y, score, score_derivative)
        return (self.gain * torch.exp(mean + variance / 2)) ** 2 * torch.expm1(variance)

    def _log_moments(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of ``ln(x/gain)``.

        Over counts ``p(z) = ∫ p(x) x^z e^-x / Γ(z+1)``, so ``∂ log p = E[ln x] - ψ(z+1)`` and
        ``∂² log p = Var[ln x] - ψ'(z+1)``.
        """
        z = y / self.gain
        mean = torch.digamma(z + 1) + self.gain * score
        variance = torch.special.polygamma(1, z + 1) + self.gain**2 * score_derivative
        return mean, variance.clamp_min(0)

    def to_unit(self, y: Tensor) -> Tensor:
        """``2 sqrt(y/gain + 3/8)`` (Anscombe 1948); 0 from -3/8 of a count down, where rounding may lead."""
        return 2 * torch.sqrt((y / self.gain + ANSCOMBE).clamp_min(0))

    def from_unit(self, u: Tensor) -> Tensor:
        """Invert :meth:`to_unit`."""
        return self.gain * ((u / 2) ** 2 - ANSCOMBE)

    def unbiased_inverse(self, w: Tensor) -> Tensor:
        """The exact unbiased inverse of Anscombe's map in closed form (Mäkitalo & Foi 2011, eq. 10)."""
        w, root = w.clamp_min(2 * ANSCOMBE**0.5), 1.5**0.5
        counts: Tensor = w**2 / 4 + root / 4 / w - 11 / 8 / w**2 + 5 / 8 * root / w**3 - 1 / 8
        return self.gain * counts

    def unit_slope(self, y: Tensor) -> Tensor:
        """``1 / (gain sqrt(y/gain + 3/8))``."""
        return 1 / (self.gain * torch.sqrt(y / self.gain + ANSCOMBE))

    def unit_curvature(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``-1/(2 (y + 3/8 gain))`` and its derivative."""
        inverse = 1 / (y + ANSCOMBE * self.gain)
        return -inverse / 2, inverse**2 / 2
