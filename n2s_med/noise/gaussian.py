"""Additive Gaussian noise: CT-like data, and MR magnitude well above its noise floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from n2s_med.noise.base import NoiseModel, Parameter, require_factor, require_positive


@dataclass(frozen=True)
class Gaussian(NoiseModel):
    """``y = x + N(0, sigma²)``.

    Parameters
    ----------
    sigma
        Standard deviation in the units of ``y``; a scalar or a map.
    """

    sigma: Parameter
    name: ClassVar[str] = "gaussian"
    fixed_power: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        require_positive(self.name, sigma=self.sigma)

    @property
    def variance_power(self) -> float:
        """Exponent of the variance function: 0, the noise does not depend on the signal."""
        return 0.0

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``x``."""
        self.check(x)
        white = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + self.sigma * white

    def variance(self, x: Tensor) -> Tensor:
        """``sigma²``."""
        return torch.zeros_like(x) + torch.as_tensor(self.sigma, dtype=x.dtype, device=x.device) ** 2

    @classmethod
    def of_dispersion(cls, power: float, dispersion: Parameter) -> Gaussian:  # noqa: ARG003 - the power is fixed
        """Gaussian noise of this variance."""
        return cls(dispersion**0.5)

    def scaled(self, factor: float) -> Gaussian:
        """``sigma`` scales with the intensities."""
        require_factor(factor)
        return Gaussian(self.sigma * factor)

    def tweedie(self, y: Tensor, score: Tensor) -> Tensor:
        """``y + sigma² s`` (Robbins 1956; Noise2Score, table 1): the posterior mean, exactly."""
        return y + self.sigma**2 * score

    def posterior_mean(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:  # noqa: ARG002
        """Return :meth:`tweedie`: for this law there is nothing to correct."""
        return self.tweedie(y, score)

    def posterior_variance(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:  # noqa: ARG002
        """``sigma² (1 + sigma² ∂s)`` (Manor & Michaeli, ICLR 2024)."""
        return (self.sigma**2 * (1 + self.sigma**2 * score_derivative)).clamp_min(0)

    def to_unit(self, y: Tensor) -> Tensor:
        """``y / sigma``."""
        return y / self.sigma

    def expected_unit(self, x: Tensor) -> Tensor:
        """``x / sigma``: the map is linear."""
        return self.to_unit(x)

    def from_unit(self, u: Tensor) -> Tensor:
        """``u * sigma``."""
        return u * self.sigma

    def unit_slope(self, y: Tensor) -> Tensor:
        """``1 / sigma``."""
        return torch.ones_like(y) / self.sigma

    def unit_curvature(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Zero: the map is linear."""
        return torch.zeros_like(y), torch.zeros_like(y)
