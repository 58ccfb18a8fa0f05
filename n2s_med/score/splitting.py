"""Count splitting: the mean of whole counts learned from the counts alone, exactly, however few they are.

Each count is kept with probability ``p``. Of Poisson counts of mean ``x`` the kept ``z'`` and the rest ``z - z'`` are
Poisson counts of means ``p x`` and ``(1 - p) x``, independent given ``x`` (thinning). So whoever is shown ``z'`` and is
to predict the rest learns ``E[x given z']``, with no formula in between that holds for many counts only: at a few
counts a voxel the unit-noise transform makes no unit noise, and its score no posterior mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from n2s_med.noise.poisson import ANSCOMBE, Poisson
from n2s_med.score.objectives import Function

COUNTS = Poisson(1.0)

LEAST = 1e-2
"""Least predicted mean: below it the deviance's slope knows no bound."""

FOLDS = 5
"""Parts, at most, that are left out in turn to estimate a risk."""


def counts_of(u: Tensor) -> Tensor:
    """The whole counts of unit-noise data, spread over their cells or not."""
    return ((u / 2).square() - ANSCOMBE).round().clamp_min(0)


def parts_of(kept: float) -> int:
    """How many parts can be left out of whole counts, no count twice, where this share is kept each time."""
    return int(1 / (1 - kept) + 1e-6)


def left_out(counts: Tensor, share: float, times: int, generator: torch.Generator) -> list[Tensor]:
    """Parts of whole counts, each a share of them chosen count by count; no count is in two."""
    parts: list[Tensor] = []
    for index in range(times):
        remaining = counts - sum(parts)
        odds = torch.full_like(counts, min(1.0, share / (1 - index * share)))
        parts.append(torch.binomial(remaining, odds, generator=generator))
    return parts


def deviance(score: Tensor, shown: Tensor, rest: Tensor, kept: float) -> Tensor:
    """Poisson deviance per voxel of the rest, given what the score of what is shown predicts of it.

    Its least mean is at the posterior mean, as that of the squared error is, and no voxel outweighs another for its
    counts being more (McCullagh & Nelder 1989, section 2.3).
    """
    predicted = _predicted(score, shown, kept).clamp_min(LEAST)
    return 2 * (torch.xlogy(rest, rest) - rest * predicted.log() - rest + predicted)


@torch.no_grad()
def split_risk(h: Function, u: Tensor, kept: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Estimated squared error and noise variance per voxel of the kept counts' denoising; their quotient is the risk.

    It has no bias. Its scatter is that of the rest, so on little data it may fall below zero; of two networks given
    the same splits it tells the better one.

    Parameters
    ----------
    h
        The score of unit-noise data times ``Σ``, as the network gives it.
    u
        Unit-noise data of whole counts, shape (N, 1, spatial).
    kept
        Share of the counts that is kept.
    generator
        Of the splits.
    """
    counts, error, folds = counts_of(u), torch.zeros_like(u), min(FOLDS, parts_of(kept))
    for rest in left_out(counts, 1 - kept, folds, generator):
        shown = COUNTS.to_unit(counts - rest)
        off = _predicted(h(shown), shown, kept) - rest
        error += (off.square() - rest) / folds
    return error * (kept / (1 - kept)) ** 2, kept * counts


def _predicted(score: Tensor, shown: Tensor, kept: float) -> Tensor:
    """Mean of the rest."""
    return COUNTS.mean_from_unit(COUNTS.from_unit(shown), score) * ((1 - kept) / kept)
