"""Score matching as published, on one volume and in our number of steps: AR-DAE of Noise2Score, and DSM.

AR-DAE keeps from the article on Noise2Score: perturbations in image units falling from 0.1 to 0.001, geometrically,
and of counts as its authors' code has them, from 1 to 0.5 counts; one perturbation a patch; Adam at 2e-4, a tenth of
it in the second half; a plain residual network of the image; its formula with the score per unit of y. Changed: the
network and the patches are ours, inference averages flips as for all arms, the result is held within the range of the
noisy scan, and there is no moving average: one of decay 0.999 would still hold half of the initial weights after 600
steps.

DSM (Vincent 2011) differs in two things: one perturbation throughout, the largest of those above, and the network is
a denoising autoencoder ``D``, from which the score is ``(D(y) - y) / σ_a²``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import Scan
from torch import Tensor

from arms.base import Result, Settings, averaged
from n2s_med.score import ArDae, Dsm, Objective, ScoreUNet, annealed
from n2s_med.score.patches import PatchSampler, UnitVolume

SIGMA_A = (0.1, 0.001)
COUNTS_A = (1.0, 0.5)
"""Perturbations at the start and at the end, in image units and, for whole counts, in counts."""

LEARNING_RATE = 2e-4

IDENTITY = torch.full((6,), 0.5)
"""What the network is told of the noise, so that it starts from the identity."""


Schedule = Callable[[float], Objective]
"""The objective at each share of the run done."""


def ar_dae(scan: Scan, settings: Settings) -> Result:
    """Noise2Score: the amortised residual autoencoder under falling perturbations."""
    sigma_a, unit = (COUNTS_A, scan.noise.quantum) if scan.noise.quantum else (SIGMA_A, 1.0)
    return _denoised(scan, _score(scan, settings, unit, lambda done: ArDae(annealed(*sigma_a, done)), 1.0))


def dsm(scan: Scan, settings: Settings) -> Result:
    """Denoising score matching: an autoencoder under one perturbation."""
    sigma_a, unit = (COUNTS_A[0], scan.noise.quantum) if scan.noise.quantum else (SIGMA_A[0], 1.0)
    return _denoised(scan, _score(scan, settings, unit, lambda _: Dsm(sigma_a), sigma_a**-2))


def _denoised(scan: Scan, score: Callable[[Tensor], Tensor]) -> Result:
    """The article's formula; for correlated noise ``y + Σ s`` with the score of white steps."""
    color = scan.noise.correlation.color
    x_hat = scan.noise.law.tweedie(scan.y, color(color(score(scan.y))))
    return Result(x_hat.clamp(scan.y.min(), scan.y.max()))


def _score(scan: Scan, settings: Settings, unit: float, schedule: Schedule, scale: float) -> Callable[[Tensor], Tensor]:
    """The score per unit of ``y``: the answer, times ``scale``, of a network trained on ``y / unit``."""
    network = _train(scan, scan.y / unit, settings, schedule, scale)
    correlation, compute = scan.noise.correlation, settings.compute
    return lambda y: scale / unit * averaged(network, y / unit, correlation, compute, IDENTITY)


def _train(scan: Scan, y: Tensor, settings: Settings, schedule: Schedule, scale: float) -> ScoreUNet:
    config, compute = settings.config, settings.compute
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scan.seed)
        network = ScoreUNet(y.ndim, config.channels)
    network.centre.copy_(y.median())
    network.to(compute.device).train()
    sampler = PatchSampler(
        [UnitVolume(y, scan.valid, scan.noise, scan.spacing_mm)],
        edge=config.patch,
        held_out=0.0,
        seed=scan.seed,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for step in range(config.steps):
        generator = torch.Generator().manual_seed(scan.seed * 1_000_003 + step)
        if 2 * step >= config.steps:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE / 10
        loss = _loss(network, sampler, schedule(step / config.steps), scale, settings, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def _loss(
    network: ScoreUNet,
    sampler: PatchSampler,
    objective: Objective,
    scale: float,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    patch = sampler.draw(generator)
    y = settings.compute.place(patch.augment(patch.u))
    white = torch.randn(y.shape, generator=generator).to(y.device)

    def score(v: Tensor) -> Tensor:
        with settings.compute.autocast():
            out: Tensor = network(v, IDENTITY.expand(len(v), -1))
        return scale * out.float()

    return objective.loss(score, y, white).mean()
