"""How far a denoised volume can be trusted, from the noisy and the denoised volume alone.

If law, level and correlation are right and the network has learned the score, the residual is noise: zero on
average, correlated as the noise is and no more, independent of the estimate, and by Tweedie's formula its
variance and the remaining error add up to that of the noise. Each of these is a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from n2s_med.denoise import Figures
from n2s_med.layout import in_cache
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.values import all_valid, data, some_places
from n2s_med.report import JSONValue, Verdict

LEAST_LEVEL = 0.5
"""Share of the level found to which its interval may reach down."""


@dataclass(frozen=True)
class Residual:
    """The residual in noise standard deviations, over the valid voxels.

    It is ``T(y) - E[T(y) given x_hat]``; for whole counts, whose ``T`` has no unit variance when they are few, it is
    ``y - x_hat`` over the root of the mean of ``V(x_hat)``.

    Attributes
    ----------
    mean, variance
        Its moments.
    neighbours
        Its correlation between neighbouring voxels, along each axis; 0 for an axis of one voxel.
    with_estimate
        Its correlation with the estimate, both in noise standard deviations.
    estimate_variance
        Variance of the estimate in the same units.
    """

    mean: float
    variance: float
    neighbours: tuple[float, ...]
    with_estimate: float
    estimate_variance: float

    def against_image(self, risk: float) -> float:
        """Correlation with the estimate beyond what the remaining error brings about.

        Noise that is left in the estimate is missing in the residual: by Stein's identity the best estimate
        has ``Cov(y - x_hat, x_hat) = σ² E[∂x_hat/∂y]``, the remaining error. A flat image counts as one with
        the noise's own variance, for there is no structure that could be followed.
        """
        covariance = self.with_estimate * math.sqrt(self.variance * self.estimate_variance)
        return (covariance - risk) / math.sqrt(self.variance * max(self.estimate_variance, 1.0))


def residual_of(y: Tensor, x_hat: Tensor, valid: Tensor, noise: ScanNoise) -> Residual:
    """Measure the residual of a volume (X, Y, Z), a few planes at a time."""
    sums = torch.zeros(6, dtype=torch.float64)
    lagged, pairs = (torch.zeros(y.ndim, dtype=torch.float64) for _ in range(2))
    unit = _count_scale(x_hat, valid, noise) if noise.quantum else None
    last: tuple[Tensor, Tensor] | None = None
    for region in in_cache(y):
        law, before, after = noise.law.at(region), y[region], x_hat[region]
        keep = valid[region]
        for holds in (noise.admits(before), law.support(after)):
            keep = keep if all_valid(holds) else keep & holds
        if unit is None:
            before, after = _unit(before, keep, law.to_unit), _unit(after, keep, law.expected_unit)
        else:
            before, after = before / unit, after / unit
        r, e = (_kept(keep, values).movedim(-1, 0).contiguous() for values in (before - after, after))
        keep = keep.movedim(-1, 0)
        products = [_product(*pair) for pair in ((r, r), (e, e), (r, e))]
        sums += torch.stack([keep.count_nonzero(), r.sum(), e.sum(), *products])
        for axis in range(r.ndim):
            lagged[axis] += _product(*_neighbours(r, axis))
            pairs[axis] += _pairs(keep, axis)
        if last is not None:
            lagged[0] += _product(last[0], r[0])
            pairs[0] += (last[1] & keep[0]).count_nonzero()
        last = r[-1], keep[-1]
    lagged, pairs = lagged.roll(-1), pairs.roll(-1)  # the planes' axis came first
    n, r1, e1, r2, e2, re = sums.tolist()
    mean, variance = r1 / n, max(r2 / n - (r1 / n) ** 2, 1e-30)
    spread = max(e2 / n - (e1 / n) ** 2, 1e-30)
    neighbours = (lagged / pairs.clamp_min(1) - mean**2) / variance * (pairs > 0)
    with_estimate = (re / n - mean * e1 / n) / math.sqrt(variance * spread)
    return Residual(mean, variance, tuple(neighbours.tolist()), with_estimate, spread)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Sum of the products, pair by pair; the dot product of a linear algebra library is less exact."""
    return (one * other).sum()


def _neighbours(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The values that have a neighbour behind them along an axis, and these neighbours."""
    size = values.shape[axis]
    return values.narrow(axis, 0, size - 1), values.narrow(axis, 1, size - 1)


def _pairs(keep: Tensor, axis: int) -> Tensor:
    """Number of neighbours along an axis that are both kept."""
    one, other = _neighbours(keep, axis)
    return torch.tensor(one.numel()) if all_valid(keep) else (one & other).count_nonzero()


def _count_scale(x_hat: Tensor, valid: Tensor, noise: ScanNoise) -> float:
    """Root of the mean noise variance at ``x_hat``."""
    return float(noise.law.variance(x_hat[valid]).mean(dtype=torch.float64).clamp_min(1e-30).sqrt())


def _unit(values: Tensor, keep: Tensor, to_unit: Callable[[Tensor], Tensor]) -> Tensor:
    """``to_unit(values)`` where they are kept, 0 elsewhere."""
    return to_unit(values) if all_valid(keep) else torch.where(keep, to_unit(torch.where(keep, values, 1.0)), 0.0)


def _kept(keep: Tensor, values: Tensor) -> Tensor:
    """The values where they are kept, 0 elsewhere."""
    return values if all_valid(keep) else torch.where(keep, values, 0.0)


def verdicts(
    residual: Residual,
    y: Tensor,
    x_hat: Tensor,
    valid: Tensor,
    noise: ScanNoise,
    figures: Figures,
    level_interval: tuple[float, float] | None = None,
) -> list[Verdict]:
    """The trust checks of one denoised volume (X, Y, Z), given its :func:`residual_of`.

    The interval is that of an estimated level, over the level; a level that was given is not checked.
    """
    expected = noise.correlation.neighbours  # two axes for a volume of one slice
    excess = max(abs(found - wanted) for found, wanted in zip(residual.neighbours, expected, strict=False))
    step = _verdict(
        "step length",
        figures.step_sure,
        (0.8, 1.25),
        "Stein's identity puts the best step along the score at one where law and level hold",
    )
    told = [] if level_interval is None else [_level_told(level_interval[0])]
    return [
        *told,
        *([] if noise.quantum else [step]),
        _verdict(
            "residual variance",
            residual.variance + figures.risk,
            (0.8, 1.2),
            "the residual's variance and the remaining error add up to the noise variance that was assumed",
        ),
        _verdict(
            "residual mean",
            residual.mean,
            (-0.1, 0.1),
            "what was taken away has no mean, in noise standard deviations",
        ),
        _verdict(
            "residual correlation",
            excess,
            (0.0, 0.15),
            "neighbouring voxels of the residual correlate as the noise does and no more",
        ),
        _verdict(
            "residual against image",
            residual.against_image(figures.risk),
            (-0.15, 0.15),
            "what was taken away follows the image no more than by the error that remains in it",
        ),
        _verdict(
            "maximum",
            _peak_shift(y, x_hat, valid, noise),
            (-4.0, max(1.0, 2 * max(figures.risk, 0.0) ** 0.5)),
            "the highest value falls, as its share of noise goes, by no more than four noise standard deviations, and"
            " rises by no more than one or twice the error that remains",
        ),
    ]


def _level_told(least: float) -> Verdict:
    return _verdict(
        "noise level",
        least,
        (LEAST_LEVEL, 1.0),
        f"the scan tells its noise: the level may be less than was found, but not below {LEAST_LEVEL:g} of it",
    )


def _verdict(name: str, value: float, bounds: tuple[float, float], expectation: str) -> Verdict:
    passed = bounds[0] <= value <= bounds[1]
    sentence = f"Holds: {expectation}." if passed else f"Does not hold: {expectation}."
    return Verdict(name, value, *bounds, passed, sentence)


def _peak_shift(y: Tensor, x_hat: Tensor, valid: Tensor, noise: ScanNoise) -> float:
    """How far the maximum moved, in noise standard deviations at that intensity; the median where they vary."""
    before, after = (data(v, valid).max() for v in (y, x_hat))
    return float((after - before) / replace(noise, law=noise.law.typical).variance(before).sqrt())


PERCENTILES: Sequence[float] = (1, 50, 99)
SUMMED_UP_BY = 1_000_000
"""Percentiles that are told, and the values that they rest on, at most."""


def quantities(y: Tensor, x_hat: Tensor, valid: Tensor) -> dict[str, JSONValue]:
    """Mean, maximum and percentiles before and after, and their shifts, in the scan's units."""
    out: dict[str, JSONValue] = {}
    places = some_places(valid, SUMMED_UP_BY)
    before, after = (_summary(volume, valid, volume[places]) for volume in (y, x_hat))
    for name in before:
        out[f"{name}_before_units"] = before[name]
        out[f"{name}_after_units"] = after[name]
        if before[name]:
            out[f"{name}_shift_percent"] = 100 * (after[name] - before[name]) / abs(before[name])
    return out


def _summary(volume: Tensor, valid: Tensor, some: Tensor) -> dict[str, float]:
    levels = np.quantile(some.double().numpy(), np.array(PERCENTILES) / 100).tolist()  # PyTorch's sorts all of them
    cuts = {f"percentile_{p:g}": level for p, level in zip(PERCENTILES, levels, strict=True)}
    parts = [data(volume[region], valid[region]) for region in in_cache(volume)]
    total, count = sum(float(part.sum(dtype=torch.float64)) for part in parts), sum(map(len, parts))
    return {"mean": total / count, "maximum": max(float(part.max()) for part in parts if len(part)), **cuts}
