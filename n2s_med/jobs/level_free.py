"""The level of the noise by the published methods: a score is learned without the level, and tells it.

A network is trained on the scan alone as in Noise2Score, from random weights and told nothing of the noise; its score,
per unit of the scan, then goes into :mod:`n2s_med.noise.by_score`. That training serves the level alone: denoising
trains anew, as its network lives in units of that level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from n2s_med.compute import Compute
from n2s_med.errors import InputError
from n2s_med.noise import Gaussian, NoiseModel
from n2s_med.noise.by_score import Score, power_by_two_perturbations, search, two_perturbations
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.regions import Region, slabs
from n2s_med.score import ScoreUNet
from n2s_med.score.patches import PatchSampler, UnitVolume
from n2s_med.score.stream import StreamedNetwork
from n2s_med.training import Trainer, TrainingConfig

METHODS: Mapping[str, Callable[[Tensor, Score, str], NoiseModel]] = MappingProxyType(
    {"search": search, "two-perturbations": two_perturbations}
)
"""The published methods by the name that the command line gives them."""

TRAINING = TrainingConfig(seconds=60, sigma_a=0.2, held_out=0.0, patience=12)
"""How the score is learned. The perturbation is a share of the detail's deviation and adds a twenty-fifth to its
variance; in the articles it falls as learning goes on. No voxels are held out, as Stein's
figure needs the level: the weights of least loss are kept, and nothing stops early."""

MOST_VOXELS = 1_000_000
"""Voxels that the level is read from, in the planes of the middle."""

CHUNK_VOXELS = 250_000
"""Voxels in the network at once."""

UNTOLD = 0.5
"""Correlation of neighbours that the network is told: it then starts from the volume itself, whatever the level."""


@dataclass(frozen=True)
class LevelByScore:
    """A published estimate of the level, and what it takes.

    Attributes
    ----------
    method
        A key of :data:`METHODS`.
    config
        How the score is learned.
    device
        Where.
    quiet
        Show no progress bar.
    """

    method: str
    config: TrainingConfig = TRAINING
    device: str = "auto"
    quiet: bool = True

    def __call__(self, y: Tensor, valid: Tensor, spacing_mm: Sequence[float], law: str) -> FoundLevel:
        """Learn the score of a volume (X, Y, Z) or (X, Y), and read the level from it.

        Raises
        ------
        ConfigurationError
            If the method was not published for this law.
        InputError
            If the volume, or its score, does not show noise of this law.
        """
        score, steps = learned_score(y, valid, spacing_mm, self.config, self.device, quiet=self.quiet)
        seen = _middle(y.shape)
        some = torch.where(valid[seen], y[seen], torch.nan)
        power = power_by_two_perturbations(some, score) if bool((y[valid] > 0).all()) else math.nan
        return FoundLevel(METHODS[self.method](some, score, law), steps, power)


@dataclass(frozen=True)
class FoundLevel:
    """What a published method found.

    Attributes
    ----------
    law
        The law with its level.
    steps
        Steps in which the score was learned.
    power
        Exponent of the variance function by two perturbations; NaN where values are not above zero.
    """

    law: NoiseModel
    steps: int
    power: float


class _Untold(Trainer):
    """A training in which the network is told nothing of the noise."""

    def _answer(self, network: ScoreUNet, batch: Tensor, traits: Tensor) -> Tensor:
        return super()._answer(network, batch, torch.full_like(traits, UNTOLD))


def learned_score(
    y: Tensor, valid: Tensor, spacing_mm: Sequence[float], config: TrainingConfig, device: str, *, quiet: bool
) -> tuple[Score, int]:
    """The score of a volume per unit of it, NaN where its argument is, and the steps in which it was learned.

    Raises
    ------
    InputError
        If the volume has no detail.
    """
    compute = Compute.choose(device, "fp32")  # two perturbations differ by a thousandth
    seen = _middle(y.shape)
    low = float(y[seen][valid[seen]].min()) if bool(valid[seen].any()) else 0.0
    filled = torch.where(valid, y, low)
    unit = _detail(filled[seen])
    noise = ScanNoise(Gaussian(1.0), Correlation.white(y.ndim))
    source = PatchSampler(
        [UnitVolume(filled / unit, valid, noise, tuple(spacing_mm))],
        edge=config.patch,
        held_out=0.0,
        seed=config.seed,
    )
    trainer = _Untold(source, config, compute)
    with tqdm(total=trainer.steps, desc="learning a score", unit="step", disable=quiet) as bar:

        def show(done: int, _: int, __: Any) -> None:
            bar.update(done - bar.n)

        network = trainer.run(show)
    streamed = StreamedNetwork(network, torch.full((2 * y.ndim,), UNTOLD), compute)

    def score(v: Tensor) -> Tensor:
        u = torch.where(v.isnan(), low, v) / unit
        planes = max(1, CHUNK_VOXELS // math.prod(v.shape[:-1]))
        parts = streamed(u[region][None].float() for region in slabs(v.shape, planes))
        return torch.where(v.isnan(), torch.nan, torch.cat([part[0] for part in parts], dim=-1) / unit)

    return score, trainer.done


def _middle(shape: Sequence[int]) -> Region:
    """The planes of the middle that hold :data:`MOST_VOXELS`; at least one."""
    whole = [slice(0, n) for n in shape[:-1]]
    planes = shape[-1] if len(shape) == 2 else min(shape[-1], max(1, MOST_VOXELS // math.prod(shape[:-1])))
    first = (shape[-1] - planes) // 2
    return (*whole, slice(first, first + planes))


def _detail(y: Tensor) -> float:
    """Standard deviation of the finest detail, by its median absolute value, as if it were all white noise."""
    detail, _ = ScoreUNet.split(y[None, None])
    found = 1.4826 * float(detail.abs().median()) / math.sqrt(ScoreUNet.detail_variance(y.ndim))
    if not found > 0:
        raise InputError("half of the volume has no detail, so no noise either", remedy="use --estimator blocks")
    return found
