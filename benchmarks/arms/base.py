"""What an arm of the comparison is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cases import Scan
from torch import Tensor

from n2s_med.compute import Compute
from n2s_med.denoise import FOR_TRAINED
from n2s_med.noise.correlation import Correlation
from n2s_med.score import ScoreUNet
from n2s_med.score.orientations import orientations
from n2s_med.training import TrainingConfig


@dataclass(frozen=True)
class Settings:
    """What all arms share.

    Attributes
    ----------
    config
        Training of new networks; the seed is the scan's.
    adaptation
        Training of those that start from the base weights.
    compute
        Device and number type.
    """

    config: TrainingConfig
    adaptation: TrainingConfig
    compute: Compute


@dataclass(frozen=True)
class Result:
    """Denoised volume, and what the arm has to say besides."""

    x_hat: Tensor
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes
    ----------
    title
        Its row in the table.
    run
        The method.
    truth
        Whether it is given the clean volume (oracle and supervised arms).
    trains
        Whether it trains a new network, so that steps and training keys matter.
    adapts
        Whether it starts from the base weights.
    weights
        Which these are, where they are not those taken by default.
    """

    title: str
    run: Callable[[Scan, Settings], Result]
    truth: bool = False
    trains: bool = False
    adapts: bool = False
    weights: Path | None = None

    @property
    def learns(self) -> bool:
        """Whether a network is trained at all."""
        return self.trains or self.adapts


@torch.no_grad()
def averaged(
    network: ScoreUNet, v: Tensor, correlation: Correlation, compute: Compute, traits: Tensor | None = None
) -> Tensor:
    """The network's output for a whole volume (X, Y, Z), averaged over its orientations, as ours does."""
    ways = orientations(FOR_TRAINED, (1.0,) * v.ndim, correlation)
    told = (correlation.traits if traits is None else traits)[None].to(compute.device)
    total = torch.zeros_like(v)
    for way in ways:
        with compute.autocast():
            out = way.of(network)(compute.place(v[None, None]), told)
        total += out[0, 0].float().cpu()
    return total / len(ways)
