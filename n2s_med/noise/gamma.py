"""Gamma noise: multiplicative speckle of mean one (ultrasound intensity, SAR, OCT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from n2s_med.errors import NoiseLawError
from n2s_med.noise.base import NoiseModel, Parameter, require_factor, require_nonnegative, require_positive


@dataclass(frozen=True)
class Gamma(NoiseModel):
    """``y = x * Gamma(shape=k, scale=1/k)``.

    Parameters
    ----------
    k
        Shape, the number of looks, above 1; a scalar or a map. It has no unit.
    """

    k: Parameter
    name: ClassVar[str] = "gamma"
    fixed_power: ClassVar[float | None] = 2.0

    def __post_init__(self) -> None:
        require_positive(self.name, k=self.k)
        if not bool((torch.as_tensor(self.k) > 1).all()):
            raise NoiseLawError(
                "k of the gamma law must be above 1: below, 1/y has no mean", remedy="average looks first"
            )

    @property
    def variance_power(self) -> float:
        """Exponent of the variance function: 2."""
        return 2.0

    def support(self, y: Tensor) -> Tensor:
        """Zero has no probability: it marks what lies outside the image. What is worse, :meth:`check` refuses."""
        return y != 0

    def check(self, y: Tensor) -> None:
        """Refuse NaN, infinity and negative values."""
        super().check(y)
        require_nonnegative(self.name, y)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``x``."""
        self.check(x)
        shape = torch.as_tensor(self.k, dtype=x.dtype, device=x.device).expand(x.shape).contiguous()
        return x * torch._standard_gamma(shape, generator=generator) / self.k

    def variance(self, x: Tensor) -> Tensor:
        """``x² / k``."""
        return x**2 / self.k

    @classmethod
    def of_dispersion(cls, power: float, dispersion: Parameter) -> Gamma:  # noqa: ARG003 - the power is fixed
        """Gamma noise of squared coefficient of variation ``dispersion``, held to the law's domain."""
        least = 1 + 1e-6
        return cls((1 / dispersion).clamp_min(least) if isinstance(dispersion, Tensor) else max(1 / dispersion, least))

    def scaled(self, factor: float) -> Gamma:
        """Return the same law: ``k`` has no unit."""
        require_factor(factor)
        return self

    def tweedie(self, y: Tensor, score: Tensor) -> Tensor:
        """``k y / ((k - 1) - y s)`` (Noise2Score, table 1): the harmonic posterior mean 1/E[1/x]."""
        return 1 / self._inverse_moments(y, score, torch.zeros_like(y))[0]

    def posterior_mean(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """``(1/m)(1 + v/m²)`` with ``m`` and ``v`` the posterior mean and variance of ``1/x``."""
        m, v = self._inverse_moments(y, score, score_derivative)
        return (1 + v / m**2) / m

    def posterior_variance(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """``v / m⁴``, by the delta method from the moments of ``1/x``."""
        m, v = self._inverse_moments(y, score, score_derivative)
        return v / m**4

    def _inverse_moments(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of ``1/x``.

        ``s = (k-1)/y - k E[1/x]`` and ``∂s = k² Var[1/x] - (k-1)/y²``.
        The mean is positive by its meaning; a score so far off that it would not be is held at 1 % of 1/y.
        """
        m = ((self.k - 1) / y - score) / self.k
        v = (score_derivative + (self.k - 1) / y**2) / self.k**2
        return torch.maximum(m, 0.01 / y), v.clamp_min(0)

    def to_unit(self, y: Tensor) -> Tensor:
        """``sqrt(k) ln y``."""
        return torch.as_tensor(self.k, dtype=y.dtype, device=y.device).sqrt() * torch.log(y)

    def from_unit(self, u: Tensor) -> Tensor:
        """Invert :meth:`to_unit`."""
        return torch.exp(u / torch.as_tensor(self.k, dtype=u.dtype, device=u.device).sqrt())

    def unit_slope(self, y: Tensor) -> Tensor:
        """``sqrt(k) / y``."""
        return torch.as_tensor(self.k, dtype=y.dtype, device=y.device).sqrt() / y

    def unit_curvature(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``-1/y`` and its derivative."""
        return -1 / y, 1 / y**2
