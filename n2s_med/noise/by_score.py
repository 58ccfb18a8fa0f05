"""The published blind methods: the level of the noise from a trained score, by Tweedie's formula.

*Search* (Kim & Ye, Noise2Score, NeurIPS 2021, and its published settings): the formula is applied at every level
of a grid, and the level of least penalty is taken. *Two perturbations* (Kim, Kwon & Ye, CVPR 2022): two noisy
images that differ by next to nothing have the same estimate, so their two scores give the level in closed form.

Both need the score of the data itself, ``score(y) = ∇_y log p(y)`` per unit of ``y``; NaN is padding. Both
read the posterior variance as noise: exact where the score knows the clean value for certain, they give too high a
level elsewhere.
:func:`n2s_med.noise.estimate.estimate` needs no score and is what the package uses by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.noise.base import NoiseModel
from n2s_med.noise.gamma import Gamma
from n2s_med.noise.gaussian import Gaussian
from n2s_med.noise.poisson import Poisson

Score = Callable[[Tensor], Tensor]
"""Gives ``∇ log p`` at every voxel, per unit of its argument."""

PERTURBATION = 1e-3
"""Standard deviation of the second image's perturbation, as a share of the image's own: small against any noise."""


# -- search ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """One law's search, for images scaled to a maximum of one.

    Attributes
    ----------
    law
        The law of a level.
    levels
        The grid.
    penalty
        Of the estimate ``x_hat`` and ``y``.
    scaled_level
        The level in the image's own units, from that of the scaled image and the image's maximum.
    """

    law: Callable[[float], NoiseModel]
    levels: Tensor
    penalty: Callable[[Tensor, Tensor], Tensor]
    scaled_level: Callable[[float, float], float]


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, summed over the axes."""
    return torch.stack([x.diff(dim=axis).abs().nanmean() for axis in range(x.ndim) if x.shape[axis] > 1]).sum()


def _gaussian_penalty(x_hat: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    return total_variation(x_hat)


def _poisson_penalty(x_hat: Tensor, y: Tensor) -> Tensor:
    """Total variation, a tenth of it, and the Poisson likelihood."""
    kept = x_hat > 0
    return 0.1 * total_variation(x_hat) + (x_hat[kept] - y[kept] * x_hat[kept].log()).mean()


def _gamma_penalty(x_hat: Tensor, y: Tensor) -> Tensor:
    """Total variation, and the mean of ``ln x_hat + y/x_hat + (y/x_hat)²``."""
    kept = x_hat > 0
    ratio = y[kept] / x_hat[kept]
    return total_variation(x_hat) + (x_hat[kept].log() + ratio + ratio.square()).mean()


SEARCHES: Mapping[str, Search] = MappingProxyType(
    {
        "gaussian": Search(
            Gaussian, torch.linspace(5, 55, 51) / 255, _gaussian_penalty, lambda sigma, scale: sigma * scale
        ),
        "poisson": Search(Poisson, torch.linspace(0.005, 0.1, 96), _poisson_penalty, lambda gain, scale: gain * scale),
        "gamma": Search(Gamma, torch.linspace(40, 120, 81), _gamma_penalty, lambda k, _: k),
    }
)
"""The searches of Noise2Score, by law."""


def search(y: Tensor, score: Score, law: str) -> NoiseModel:
    """The law with the level of least penalty on the published grid.

    Parameters
    ----------
    y
        Noisy image or volume, in its own units.
    score
        Its score.
    law
        ``gaussian``, ``poisson`` or ``gamma``.

    Raises
    ------
    ConfigurationError
        If no search was published for this law.
    InputError
        If the image has no positive value, by which it is scaled.
    """
    settings = SEARCHES[published(law, SEARCHES)]
    scale = float(y[~y.isnan()].max())
    if not scale > 0:
        raise InputError("the search scales an image by its maximum, which is not positive", remedy="use blocks")
    scaled, scaled_score = y / scale, score(y) * scale
    levels: list[float] = settings.levels.tolist()
    estimates = (settings.law(level).tweedie(scaled, scaled_score) for level in levels)
    penalties = torch.stack([settings.penalty(x_hat, scaled) for x_hat in estimates])
    best = levels[int(penalties.argmin())]
    return settings.law(settings.scaled_level(best, scale))


# -- two perturbations -------------------------------------------------------------------------------------


def two_perturbations(y: Tensor, score: Score, law: str, *, seed: int = 0) -> NoiseModel:
    """The law with the level at which the estimates of ``y`` and of ``y + ε`` agree: the median over the voxels.

    With ``Δs = score(y + ε) - score(y)``, to first order in ``ε``: ``σ² = -ε/Δs``,
    ``ζ = -y + sqrt(y² - 2 ε/Δs)`` and ``k = 1 + Δs / (1/(y + ε) - 1/y)`` (CVPR 2022, supplement).

    Parameters
    ----------
    y
        Noisy image or volume, in its own units.
    score
        Its score.
    law
        ``gaussian``, ``poisson`` or ``gamma``.
    seed
        Seed of ``ε``.

    Raises
    ------
    ConfigurationError
        If no solution was published for this law.
    InputError
        If at no voxel the two scores agree with such noise.
    """
    solve = SOLUTIONS[published(law, SOLUTIONS)]
    epsilon = _perturbation(y, seed)
    found = solve(y, epsilon, score(y + epsilon) - score(y))
    found = found[torch.isfinite(found) & (found > 0)]
    if not len(found):
        raise InputError("the score of the image does not change as that of noise does", remedy="use blocks")
    return LEVELS[law](float(found.median()))


def power_by_two_perturbations(y: Tensor, score: Score, *, seed: int = 0) -> float:
    """The exponent ``ρ`` of the Tweedie law by which ``y^(ρ-2) (ρ + 2 y s)`` is the same at ``y`` and ``y + ε``.

    With ``b = 2 y s``, ``w`` its difference and ``a = ln((y + ε)/y)``, that is the larger root of
    ``(ρ - 2)(ρ + b) = -w/a`` (CVPR 2022, section 3.3); the median over the voxels, held to [0, 2].
    """
    epsilon = _perturbation(y, seed)
    b = 2 * y * score(y)
    w = 2 * (y + epsilon) * score(y + epsilon) - b
    root = ((b + 2).square() - 4 * w / torch.log1p(epsilon / y)).sqrt()
    found = (2 - b + root) / 2
    return float(found[torch.isfinite(found)].median().clamp(0, 2))


def _perturbation(y: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PERTURBATION * y[~y.isnan()].std() * torch.randn(y.shape, generator=generator, dtype=y.dtype)


def published(law: str, methods: Mapping[str, object]) -> str:
    """The law, or :class:`ConfigurationError` where these methods are not for it."""
    if law not in methods:
        raise ConfigurationError(
            f"this estimator was published for {', '.join(methods)}, not for {law}",
            remedy="choose one of these laws, or the estimator blocks",
        )
    return law


def _variance(y: Tensor, epsilon: Tensor, change: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    return -epsilon / change


def _gain(y: Tensor, epsilon: Tensor, change: Tensor) -> Tensor:
    return -y + (y.square() - 2 * epsilon / change).sqrt()


def _looks(y: Tensor, epsilon: Tensor, change: Tensor) -> Tensor:
    return 1 + change / (1 / (y + epsilon) - 1 / y)


SOLUTIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {"gaussian": _variance, "poisson": _gain, "gamma": _looks}
)
LEVELS: Mapping[str, Callable[[float], NoiseModel]] = MappingProxyType(
    {"gaussian": lambda variance: Gaussian(variance**0.5), "poisson": Poisson, "gamma": Gamma}
)
"""The closed form of each law's level, and the law of it."""
