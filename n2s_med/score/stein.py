"""Stein's identities: the figures that need no clean image.

In the unit-noise domain ``u = x + L w`` with ``Σ = L Lᵀ`` the estimate is ``x_hat = u + h(u)``. One Monte Carlo
probe (Ramani et al. 2008) gives the trace in Stein's unbiased risk estimate

    SURE = E|h|² + 2 tr(Σ ∂h/∂u) / N + 1,

and, as ``Cov[x given u] = Σ + Σ ∇² log p Σ`` (Manor & Michaeli, ICLR 2024), the same product of probe and
response is the posterior variance of each voxel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score.objectives import Function

PROBE_STEP = 0.1
"""Finite difference of the probes, in noise standard deviations: well above bfloat16's rounding."""

EDGE = 1e-3
"""Probes keep this many noise standard deviations away from the end of the law's domain."""


def response(f: Function, at: Tensor, along: Tensor) -> Tensor:
    """Derivative of ``f`` along a direction, by central difference."""
    return (f(at + PROBE_STEP * along) - f(at - PROBE_STEP * along)) / (2 * PROBE_STEP)


def step_terms(h: Function, u: Tensor, correlation: Correlation, white: Tensor) -> tuple[Tensor, Tensor]:
    """``h²`` and ``(L w) ∂h/∂u (L w)`` per voxel of unit-noise data ``u``, shape (N, 1, spatial).

    Of ``u + α h``, the ``α`` of least SURE is minus the mean of the second over the mean of the first: one
    where law, level and network are right.
    """
    colored = correlation.color(white)
    return h(u).square(), colored * response(h, u, colored)


def risk_terms(h: Function, u: Tensor, noise: ScanNoise, white: Tensor) -> tuple[Tensor, Tensor]:
    """Estimated squared error and noise variance per voxel, in one unit; their means' quotient is the risk.

    SURE in the unit-noise domain, ``h² + 2 (L w) ∂h/∂u (L w) + 1`` over 1 (Stein 1981). Whole counts
    do not have unit variance there when they are few, so for them it is PURE in the scan's own units, to
    first order in the step of one count: ``|f - y|² - V + 2 b (∂f/∂y) b`` over ``V`` with ``f(y) = x_hat``
    and ``b = sqrt(V(y)) L w`` (Le Montagner, Angelini & Olivo-Marin 2014).

    Parameters
    ----------
    h
        The score of unit-noise data times ``Σ``, as the network gives it.
    u
        Unit-noise data of shape (N, 1, spatial).
    noise
        Noise of the scan.
    white
        N(0, I) or ±1 probe, same shape.
    """
    if noise.quantum > 0:
        parts = count_parts(h, u, noise, white)
        return count_risk(*parts), parts[-1]
    square, trace = step_terms(h, u, noise.correlation, white)
    return square + 2 * trace + 1, torch.ones_like(square)


def count_parts(h: Function, u: Tensor, noise: ScanNoise, white: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of whole counts in the scan's own units: ``f - y``, the probe ``b``, ``(∂f/∂y) b``, and the noise variance."""
    law = noise.law
    y = law.from_unit(u)
    variance = noise.variance(y)
    lowest = EDGE * variance.sqrt().min() - torch.as_tensor(law.shift)

    def estimate(values: Tensor) -> Tensor:
        counts = torch.maximum(values, lowest)
        return law.mean_from_unit(counts, h(law.to_unit(counts)))

    probe = variance.sqrt() * noise.correlation.color(white)
    return estimate(y) - y, probe, response(estimate, y, probe), variance


def count_risk(change: Tensor, probe: Tensor, answer: Tensor, variance: Tensor) -> Tensor:
    """PURE per voxel from :func:`count_parts`."""
    return change.square() - variance + 2 * probe * answer
