"""What every noise law offers: one interface, seven formulas.

Notation (Kim & Ye, "Noise2Score", NeurIPS 2021): ``x`` clean, ``y`` noisy, ``x_hat`` estimate,
``score = ∇_y log p(y)``, always per unit of ``y``; ``score_derivative = ∂score_i/∂y_i``.
All tensors of one call broadcast together; parameters are scalars or maps over the volume.

Each law also has a *unit-noise map* ``u = T(y)`` with ``T' = 1/sqrt(V)``: in ``u`` every law looks like
Gaussian noise of variance one, so one network serves every law, level and unit of intensity. Scores change
variables as ``s_y = T' s_u + T''/T'``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from n2s_med.errors import NoiseLawError
from n2s_med.noise.values import are_finite, has_negative, once

Parameter = float | Tensor


class NoiseModel(ABC):
    """The law of a noisy measurement ``y`` given the clean value ``x``.

    Subclasses are frozen dataclasses whose fields are the law's parameters.

    Attributes
    ----------
    name
        Key of the law on the command line and in reports.
    fixed_power
        Exponent of the variance function where every law of the class has the same; ``None`` where it is a parameter.
    """

    name: ClassVar[str]
    fixed_power: ClassVar[float | None]

    @property
    @abstractmethod
    def variance_power(self) -> float:
        """Exponent ``ρ`` of the variance function ``V(x) ∝ x**ρ``."""

    @property
    def quantum(self) -> float:
        """Width of the lattice that raw data of this law lie on (one count), 0 if they are continuous."""
        return 0.0

    # -- the law ---------------------------------------------------------------------------------------

    @abstractmethod
    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``y`` given ``x``, same shape, dtype and units; an ``x`` outside the law's domain is refused."""

    @abstractmethod
    def variance(self, x: Tensor) -> Tensor:
        """Variance of ``y`` given ``x``, in squared units of ``y``."""

    @classmethod
    @abstractmethod
    def of_dispersion(cls, power: float, dispersion: Parameter) -> Self:
        """Return the law of variance ``dispersion * x**power``; a class of fixed power ignores ``power``.

        A dispersion that is a map gives a law whose level is one.
        """

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return the law of ``factor * y``, for ``factor > 0``."""

    def at(self, region: tuple[slice, ...] | tuple[Tensor, ...]) -> Self:
        """The law over a box of the volume, or at places given by their indices: maps are cut to them.

        Maps over a single slice (X, Y) serve a volume (X, Y, 1) as well.
        """

        def cut(over: Tensor) -> Tensor:
            inside = over[region[: over.ndim]]
            return inside[(..., *(None,) * (len(region) - over.ndim))] if len(region) > over.ndim else inside

        maps = {
            f.name: cut(getattr(self, f.name))
            for f in fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
            if isinstance(getattr(self, f.name), Tensor) and getattr(self, f.name).ndim
        }
        return replace(self, **maps) if maps else self  # type: ignore[type-var]

    def over(self, shape: Sequence[int]) -> Self:
        """The law with its maps, which may be constant along axes, expanded to a volume's shape."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # as in :meth:`at`
        maps = {name: v.expand(*shape) for name, v in values.items() if isinstance(v, Tensor) and v.ndim}
        return replace(self, **maps)  # type: ignore[type-var]

    def support(self, y: Tensor) -> Tensor:
        """Boolean mask of the values that the law can produce from a positive signal."""
        return torch.ones((), dtype=torch.bool, device=y.device).expand(y.shape)

    def check(self, y: Tensor) -> None:
        """Refuse data outside the law's domain.

        Raises
        ------
        NoiseLawError
            Where ``y`` holds NaN or infinity, or (Poisson, Gamma, Tweedie) negative values.
        """
        if not are_finite(y):
            bad = int((~torch.isfinite(y)).sum())
            raise NoiseLawError(
                f"{bad} of {y.numel()} values are NaN or infinite",
                remedy="repair the scan or mask these voxels as padding",
            )

    # -- from score to estimate ------------------------------------------------------------------------

    @abstractmethod
    def tweedie(self, y: Tensor, score: Tensor) -> Tensor:
        """``x_hat`` from the score, the formula as published in Noise2Score."""

    @abstractmethod
    def posterior_mean(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """E[x given y] to second order, from the score and its diagonal derivative."""

    @abstractmethod
    def posterior_variance(self, y: Tensor, score: Tensor, score_derivative: Tensor) -> Tensor:
        """Var[x given y] to second order, in squared units of ``y``; never negative."""

    # -- the unit-noise domain -------------------------------------------------------------------------

    @abstractmethod
    def to_unit(self, y: Tensor) -> Tensor:
        """``u = T(y)``, in which the noise has unit variance."""

    @abstractmethod
    def from_unit(self, u: Tensor) -> Tensor:
        """Invert :meth:`to_unit`."""

    @abstractmethod
    def unit_slope(self, y: Tensor) -> Tensor:
        """``T'(y)``, one over the noise's standard deviation at ``y``."""

    @abstractmethod
    def unit_curvature(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``T''/T'`` at ``y`` and its derivative by ``y``."""

    def score_from_unit(self, y: Tensor, score_u: Tensor) -> Tensor:
        """Score per unit of ``y`` from the score per unit of ``u``: ``T' s_u + T''/T'``."""
        return self.unit_slope(y) * score_u + self.unit_curvature(y)[0]

    def score_derivative_from_unit(self, y: Tensor, score_u: Tensor, derivative_u: Tensor) -> Tensor:
        """``∂s_y/∂y`` from ``∂s_u/∂u``: ``T'² ∂s_u + T'' s_u + (T''/T')'``."""
        slope = self.unit_slope(y)
        bend, bend_derivative = self.unit_curvature(y)
        return slope**2 * derivative_u + bend * slope * score_u + bend_derivative

    # -- both together: what the denoiser calls --------------------------------------------------------

    @property
    def shift(self) -> Parameter:
        """Offset at which :meth:`tweedie_from_unit` takes the formula, where it is singular at zero."""
        return 0.0

    def tweedie_from_unit(self, y: Tensor, score_u: Tensor) -> Tensor:
        """:meth:`tweedie` from the score in the unit-noise domain.

        With ``c = sqrt(V(y))/y`` this is ``y [1 + (1-ρ) c s_u]^(1/(1-ρ))``; for counts, the form with
        Anscombe's 3/8. It needs the exact score: a score blurred by a perturbation is amplified where
        ``c`` is large, that is at few counts.
        """
        x_hat = self.tweedie(y + self.shift, self.score_from_unit(y, score_u)) - self.shift
        return x_hat if self.variance_power == 0 else x_hat.clamp_min(0)

    def mean_from_unit(self, y: Tensor, score_u: Tensor) -> Tensor:
        """E[x given y] by Tweedie's formula in the unit-noise domain, where it is Gaussian, mapped back.

        ``u + s_u`` estimates ``E[T(y) given x]``, which :meth:`unbiased_inverse` takes to ``x``. To first
        order this is :meth:`tweedie_from_unit`, but it stays right where the score is large: at few counts.
        """
        x_hat = self.unbiased_inverse(self.to_unit(y) + score_u)
        return x_hat if self.variance_power == 0 else x_hat.clamp_min(0)

    def expected_unit(self, x: Tensor) -> Tensor:
        """``E[T(y) given x]`` by the delta method, ``T(x) - ρ/4 sqrt(V)/x``."""
        shifted = x + self.shift
        return self.to_unit(x) - self.variance_power / 4 * self.variance(shifted).sqrt() / shifted

    def unbiased_inverse(self, w: Tensor) -> Tensor:
        """``x`` from ``w = E[T(y) given x]``, which by the delta method is ``T(x) - ρ/4 sqrt(V)/x``."""
        rho = self.variance_power
        if rho == 0:
            return self.from_unit(w)
        if rho < 2:
            w = torch.maximum(w, self.to_unit(torch.zeros_like(w)) / 3**0.5)
        shifted = self.from_unit(w) + self.shift
        return self.from_unit(w + rho / 4 * self.variance(shifted).sqrt() / shifted)

    # -- what reports and provenance print -------------------------------------------------------------

    @property
    def typical(self) -> Self:
        """The law with the median of each map in its place."""
        return replace(self, **self.parameters)  # type: ignore[type-var]  # every subclass is a dataclass

    @cached_property
    def parameters(self) -> Mapping[str, float]:
        """The parameters by name; a map is given by its median."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # every subclass is one
        return {name: float(once(v).median() if isinstance(v, Tensor) else v) for name, v in values.items()}

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value:.6g}" for name, value in self.parameters.items())
        return f"{self.name}({inside})"


def require_positive(law: str, **parameters: Parameter) -> None:
    """Raise :class:`NoiseLawError` unless every parameter is finite and above zero."""
    for name, value in parameters.items():
        lowest, highest = once(torch.as_tensor(value)).aminmax()
        if not 0 < float(lowest) <= float(highest) < math.inf:
            raise NoiseLawError(
                f"{name} of the {law} law must be above zero and finite", remedy=f"give a positive --{name}"
            )


def require_factor(factor: float) -> None:
    """Raise :class:`NoiseLawError` unless intensities can be scaled by ``factor``."""
    if not 0 < factor < math.inf:
        raise NoiseLawError(f"intensities cannot be scaled by {factor:g}", remedy="give a finite factor above zero")


def require_nonnegative(law: str, y: Tensor) -> None:
    """Raise :class:`NoiseLawError` where ``y`` is negative, as the law admits no offset."""
    if has_negative(y):
        count = int((y < 0).sum())
        raise NoiseLawError(
            f"{count} of {y.numel()} values are negative (lowest {float(y.min()):.6g}), and the {law} law"
            " holds only for intensities above zero without offset (not for Hounsfield units)",
            remedy="use the gaussian law, or give the scan before its offset was subtracted",
        )
