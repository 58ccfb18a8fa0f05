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
from n2s_med.score.patches import HeldOut, Patch
from n2s_med.score.stein import risk_terms

COUNTS = Poisson(1.0)

KEPT = 0.8
"""Share of the counts that is kept, by default."""

FEW = 20
"""Data are split where a count shares its voxel with fewer others, in the mean. Above, their unit-noise data have unit
noise, and antithetic perturbations learned 0.15 dB more at 50."""

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


def are_counts(part: Patch | HeldOut, kept: float) -> bool:
    """Whether a part of the data is whole counts that may be split."""
    return kept > 0 and part.noise.quantum > 0


def are_split(part: Patch | HeldOut, kept: float) -> bool:
    """Whether a part of the data is learned by count splitting: whole counts, and few of them."""
    if not are_counts(part, kept):
        return False
    counts = counts_of(part.u)
    return float(counts.square().sum()) < FEW * float(counts.sum())


def split(u: Tensor, kept: float, times: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Whole counts split, so many times if that leaves none out twice: what is shown, of unit noise, and the rest."""
    counts = counts_of(u)
    rests = left_out(counts, 1 - kept, min(times, parts_of(kept)), generator)
    return [(COUNTS.to_unit(counts - rest), rest) for rest in rests]


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
    error, folds = torch.zeros_like(u), split(u, kept, FOLDS, generator)
    for shown, rest in folds:
        off = _predicted(h(shown), shown, kept) - rest
        error += (off.square() - rest) / len(folds)
    return error * (kept / (1 - kept)) ** 2, kept * counts_of(u)


def held_out_risk(h: Function, block: HeldOut, kept: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Estimated squared error and noise variance per voxel of a held-out block, in the way that it is learned.

    Parameters
    ----------
    h
        The score of unit-noise data times ``Σ``, as the network gives it.
    block
        The block.
    kept
        Share of few whole counts that is kept; 0 splits none.
    generator
        Of the splits, or of the probe of Stein's estimate.
    """
    if are_split(block, kept):
        return split_risk(h, block.u, kept, generator)
    return risk_terms(h, block.u, block.noise, torch.randn(block.u.shape, generator=generator))


def _predicted(score: Tensor, shown: Tensor, kept: float) -> Tensor:
    """Mean of the rest."""
    return COUNTS.mean_from_unit(COUNTS.from_unit(shown), score) * ((1 - kept) / kept)
