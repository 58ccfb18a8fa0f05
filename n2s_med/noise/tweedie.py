"""The Tweedie family: variance ``dispersion * x**power``, with Gaussian, Poisson and Gamma as its corners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from n2s_med.errors import NoiseLawError
from n2s_med.noise.base import NoiseModel, Parameter, require_factor, require_nonnegative, require_positive
from n2s_med.noise.gamma import Gamma
from n2s_med.noise.gaussian import Gaussian
from n2s_med.noise.poisson import ANSCOMBE, Poisson

CORNER = 1e-6
"""Powers nearer than this to 1 or 2 take the limit of the formulas, which divide by 1-ρ and 2-ρ."""


@dataclass(frozen=True)
class Tweedie(NoiseModel):
    """Exponential dispersion model with variance ``dispersion * x**power``.

    ``power`` 0, 1 and 2 are Gaussian, Poisson and Gamma noise; between 1 and 2 lies the compound Poisson law,
    a sum of Poisson many Gamma jumps, which describes reconstructed emission scans better than either.
    Powers between 0 and 1 belong to no distribution: there the formulas hold for the variance function alone,
    and :meth:`sample` refuses.

    Parameters
    ----------
    power
        ``ρ`` in [0, 2], a scalar.
    dispersion
        ``φ`` in units of ``y**(2 - power)``; a scalar or a map.
    """

    power: float
    dispersion: Parameter
    name: ClassVar[str] = "tweedie"
    fixed_power: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        require_positive(self.name, dispersion=self.dispersion)
        if torch.as_tensor(self.power).ndim:
            raise NoiseLawError("power of the tweedie law is one number", remedy="make a map of the dispersion instead")
        if not 0 <= self.power <= 2:
            raise NoiseLawError(
                f"power of the tweedie law must lie in [0, 2], got {self.power:.6g}",
                remedy="give --power between 0 (gaussian) and 2 (gamma)",
            )

    @property
    def variance_power(self) -> float:
        """Exponent of the variance function."""
        return self.power

    def check(self, y: Tensor) -> None:
        """Refuse NaN and infinity, and negative values unless the power is zero."""
        super().check(y)
        if self.power > 0:
            require_nonnegative(self.name, y)

    def support(self, y: Tensor) -> Tensor:
        """All values, but for power 2 (Gamma), where zero has no probability."""
        return y != 0 if self.power > 2 - CORNER else super().support(y)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``x``; a compound Poisson sum for powers between 1 and 2.

        ``N ~ Poisson(x^(2-ρ) / (φ (2-ρ)))`` jumps, each ``Gamma((2-ρ)/(ρ-1), φ (ρ-1) x^(ρ-1))``
        (Jørgensen 1997, section 4.2).
        """
        self.check(x)
        rho, phi = self.power, torch.as_tensor(self.dispersion, dtype=x.dtype, device=x.device)
        if rho == 0:
            return Gaussian(phi.sqrt()).sample(x, generator)
        if rho == 1:
            return Poisson(phi).sample(x, generator)
        if rho == 2:
            return Gamma(1 / phi).sample(x, generator)
        if rho < 1:
            raise NoiseLawError(
                f"no distribution has variance x**{rho:.6g}", remedy="sample with power 0, or from 1 to 2"
            )
        jumps = torch.poisson(x ** (2 - rho) / (phi * (2 - rho)), generator=generator)
        shape = jumps * (2 - rho) / (rho - 1)
        total = torch._standard_gamma(shape.clamp_min(torch.finfo(x.dtype).tiny), generator=generator)
        return torch.where(jumps > 0, total * phi * (rho - 1) * x ** (rho - 1), 0.0)

    def variance(self, x: Tensor) -> Tensor:
        """``dispersion * x**power``."""
        return self.dispersion * x**self.power

    @classmethod
    def of_dispersion(cls, power: float, dispersion: Parameter) -> Tweedie:
        """The law itself, its power held to [0, 2]."""
        return cls(min(max(power, 0.0), 2.0), dispersion)

    def scaled(self, factor: float) -> Tweedie:
        """``dispersion`` scales as ``factor**(2 - power)``."""
        require_factor(factor)
        return Tweedie(self.power, self.dispersion * factor ** (2 - self.power))

    def tweedie(self, y: Tensor, score: Tensor) -> Tensor:
        """``y [1 + (1-ρ) φ y^(ρ-1) (ρ/(2y) + s)]^(1/(1-ρ))``, by the saddle point (Kim et al., CVPR 2022)."""
        rho = self.power
        if rho == 0:
            return y + self.dispersion * score
        return self._power_mean(y, self.dispersion * y ** (rho - 1) * (rho / (2 * y) + score))

    def posterior_mean(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """``g(θ) + g''(θ) Var[θ]/2`` for ``x = g(θ)``, ``θ = x^(1-ρ)/(1-ρ)``, ``g'' = ρ x^(2ρ-1)``."""
        x_hat, variance = self.tweedie(y, score), self._natural_variance(y, score_derivative)
        if self.power == 0:
            return x_hat
        return x_hat + self.power / 2 * x_hat ** (2 * self.power - 1) * variance

    def posterior_variance(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """``x_hat^(2ρ) Var[θ]``, by the delta method."""
        return self.tweedie(y, score) ** (2 * self.power) * self._natural_variance(y, score_derivative)

    def _natural_variance(self, y: Tensor, score_derivative: Tensor) -> Tensor:
        """Posterior variance of the natural parameter, with the saddle point's normaliser."""
        rho, phi = self.power, self.dispersion
        bend = rho / (2 * y**2) if rho > 0 else 0.0
        return (phi**2 * (score_derivative - bend) + phi * y**-rho).clamp_min(0)

    def _power_mean(self, y: Tensor, step: Tensor) -> Tensor:
        """``y [1 + (1-ρ) step]^(1/(1-ρ))``, with its limit ``y exp(step)`` at ρ = 1.

        The bracket is positive by its meaning; a score so far off that it would not be is held at 1 %.
        """
        if abs(1 - self.power) < CORNER:
            return y * torch.exp(step)
        bracket = ((1 - self.power) * step).clamp_min(0.01 - 1)
        return y * torch.exp(torch.log1p(bracket) / (1 - self.power))  # to float32 precision near ρ = 1 too

    @property
    def shift(self) -> Parameter:
        """Shift that keeps the unit-noise map finite at zero: Anscombe's at ρ = 1, none at 0 and 2."""
        if self.power in (0, 2):
            return 0.0
        bend = ANSCOMBE * self.power * (2 - self.power)
        return bend * self.dispersion ** (1 / (2 - self.power))

    def to_unit(self, y: Tensor) -> Tensor:
        """``(y + b)^(1-ρ/2) / ((1-ρ/2) sqrt(φ))``, or ``ln(y)/sqrt(φ)`` at ρ = 2."""
        root, half = self._root(y), 1 - self.power / 2
        if half < CORNER:
            return torch.log(y) / root
        return (y + self.shift) ** half / (half * root)

    def from_unit(self, u: Tensor) -> Tensor:
        """Invert :meth:`to_unit`."""
        root, half = self._root(u), 1 - self.power / 2
        if half < CORNER:
            return torch.exp(u * root)
        return (u * half * root) ** (1 / half) - self.shift

    def _root(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.dispersion, dtype=like.dtype, device=like.device).sqrt()

    def unit_slope(self, y: Tensor) -> Tensor:
        """``(y + b)^(-ρ/2) / sqrt(φ)``."""
        return (y + self.shift) ** (-self.power / 2) / self._root(y)

    def unit_curvature(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``-ρ / (2 (y + b))`` and its derivative."""
        inverse = 1 / (y + self.shift) if self.power > 0 else torch.zeros_like(y)
        return -self.power / 2 * inverse, self.power / 2 * inverse**2
