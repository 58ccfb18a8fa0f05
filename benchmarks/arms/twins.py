"""Twins of our training: the same network, patches, augmentation, optimizer and steps under another loss.

All learn ``g`` with ``x_hat = u + g(u)`` in the unit-noise domain, take the last weights, train on every voxel,
and infer as ours does: the mean of four orientations, unbiased inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from cases import Scan
from torch import Tensor

from arms.base import Result, Settings, averaged
from n2s_med.noise import NoiseModel
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel, ScoreUNet, base_model
from n2s_med.score.model import copy_state
from n2s_med.score.patches import Patch
from n2s_med.training import PatchSampler, Trainer, UnitVolume
from n2s_med.training.trainer import Progress, no_progress

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Network, Patch, torch.Generator], Tensor]
"""Squared error per voxel of one patch."""

SURE_STEP = 0.1
"""Finite difference of MC-SURE's probe, in noise SDs."""

BLIND_SHARE = 0.015
BLIND_RADIUS = 5
"""Share of the voxels that Noise2Void hides, and how far away their stand-ins are taken from: its authors' defaults."""


class Twin(Trainer):
    """Our trainer with another loss."""

    def __init__(self, scan: Scan, u: Tensor, settings: Settings, loss: Loss, start: ScoreModel | None) -> None:
        self.loss = loss
        given = settings.adaptation if start else settings.config
        config = replace(given, held_out=0.0, checks=1, ema=0.0, seed=scan.seed, seconds=1.0)
        volume = UnitVolume(u, scan.valid, scan.noise, scan.spacing_mm)
        source = PatchSampler([volume], edge=config.patch, held_out=0.0, seed=config.seed)
        super().__init__(source, config, settings.compute, network=start and start.centred(source.centre).network)

    def run(self, progress: Progress = no_progress) -> ScoreUNet:
        """Train, and keep the last weights."""
        best = super().run(progress)
        best.load_state_dict(self.last)
        return best

    def _check(self) -> None:
        super()._check()
        self.last = copy_state(self.network)

    def _loss(self, network: ScoreUNet, generator: torch.Generator) -> Tensor:
        return torch.stack([self._patch_loss(network, generator) for _ in range(self.config.patches)]).mean()

    def _patch_loss(self, network: ScoreUNet, generator: torch.Generator) -> Tensor:
        patch = self.source.draw(generator)

        def g(v: Tensor) -> Tensor:
            traits = patch.noise.correlation.traits.expand(len(v), -1)
            return patch.restore(self._answer(network, patch.augment(v), traits)).cpu()

        mean: Tensor = (self.loss(g, patch, generator) * patch.weight).sum() / patch.weight.sum().clamp_min(1)
        return mean


def supervised(scan: Scan, settings: Settings) -> Result:
    """Learns the clean volume itself, from the very patches that ours are given."""
    return _against(scan, expected_unit(scan.noise.law, scan.truth), settings)


def supervised_adapted(scan: Scan, settings: Settings) -> Result:
    """The base weights adapted to the clean volume itself: what the scan could teach at most."""
    return _against(scan, expected_unit(scan.noise.law, scan.truth), settings, base_model(scan.y.ndim))


def noise2noise(scan: Scan, settings: Settings) -> Result:
    """Learns a second scan with fresh noise (Lehtinen et al. 2018)."""
    law, correlation = scan.noise.law, scan.noise.correlation
    generator = torch.Generator().manual_seed(7_000_003 + scan.seed)
    second = law.sample(scan.truth, generator)
    if not correlation.is_white:
        white = torch.randn(second.shape, generator=generator)
        second = scan.truth + law.variance(scan.truth).sqrt() * correlation.color(white)
    return _against(scan, law.to_unit(second).float(), settings)


def _against(scan: Scan, target: Tensor, settings: Settings, start: ScoreModel | None = None) -> Result:
    """Train to meet ``target``, of the shape of the scan."""
    target = target.contiguous()

    def loss(g: Network, patch: Patch, generator: torch.Generator) -> Tensor:  # noqa: ARG001
        wanted = torch.as_strided(target, patch.u.shape, patch.u.stride(), patch.u.storage_offset())
        return (patch.u + g(patch.u) - wanted).square()

    return _trained(scan, settings, loss, start)


def mc_sure(scan: Scan, settings: Settings) -> Result:
    """Learns Stein's risk of the noisy scan, its divergence by one probe (Soltanayev & Chun 2018); of counts, PURE."""
    risk = pure if scan.noise.quantum else sure

    def loss(g: Network, patch: Patch, generator: torch.Generator) -> Tensor:
        return risk(g, patch.u, scan.noise, generator)

    return _trained(scan, settings, loss)


def sure(g: Network, u: Tensor, noise: ScanNoise, generator: torch.Generator) -> Tensor:
    """``|g|² + 2 (L w) ∂g/∂u (L w)`` per voxel: the squared error of ``u + g(u)``, but for a constant."""
    probe = noise.correlation.color(torch.randn(u.shape, generator=generator))
    here, ahead = g(torch.cat((u, u + SURE_STEP * probe))).chunk(2)
    return here.square() + 2 * probe * (ahead - here) / SURE_STEP


def pure(g: Network, u: Tensor, noise: ScanNoise, generator: torch.Generator) -> Tensor:
    """``(|f(y) - y|² + 2 ζ y ∂f/∂y) / mean(ζ y)`` per voxel, with ``f(y) = x_hat`` and one probe of signs.

    But for a constant it is the squared error of ``f`` (Le Montagner et al. 2014; Kim, Soltanayev & Chun 2020).
    """
    law = noise.law
    y = law.from_unit(u).clamp_min(0)
    probe = law.variance(y).sqrt() * (2 * torch.randint(2, y.shape, generator=generator) - 1)
    shown = torch.cat((y, y + SURE_STEP * probe))
    here, ahead = law.mean_from_unit(shown, g(law.to_unit(shown))).chunk(2)
    return ((here - y).square() + 2 * probe * (ahead - here) / SURE_STEP) / law.variance(y).mean()


def noise2void(scan: Scan, settings: Settings) -> Result:
    """Learns hidden voxels from their surroundings (Krull et al. 2019)."""

    def loss(g: Network, patch: Patch, generator: torch.Generator) -> Tensor:
        hidden = torch.rand(patch.u.shape, generator=generator) < BLIND_SHARE
        seen = torch.where(hidden, _stand_ins(patch.u, generator), patch.u)
        return (seen + g(seen) - patch.u).square() * hidden / BLIND_SHARE

    return _trained(scan, settings, loss)


def _stand_ins(u: Tensor, generator: torch.Generator) -> Tensor:
    """For each voxel the value of another one near it."""
    sides = u.shape[2:]
    grid = torch.meshgrid(*(torch.arange(n) for n in sides), indexing="ij")
    reach = 2 * BLIND_RADIUS + 1
    offset = torch.randint(1, reach**3, u.shape[2:], generator=generator)
    offset = (offset + reach**3 // 2) % reach**3  # every place of the cube but its centre
    index = []
    for axis, n in enumerate(sides):
        move = offset // reach**axis % reach - BLIND_RADIUS
        place = grid[axis] + move
        index.append(torch.where((place < 0) | (place >= n), grid[axis] - move, place).clamp(0, n - 1))
    return u[0, 0][tuple(index)][None, None]


def _trained(scan: Scan, settings: Settings, loss: Loss, start: ScoreModel | None = None) -> Result:
    law = scan.noise.law
    u = law.to_unit(scan.y).float().contiguous()
    network = Twin(scan, u, settings, loss, start).run()
    return Result(law.mean_from_unit(scan.y, averaged(network, u, scan.noise.correlation, settings.compute)))


def expected_unit(law: NoiseModel, x: Tensor, rounds: int = 60) -> Tensor:
    """``E[T(y) given x]``, the ``w`` that the law's unbiased inverse takes to ``x``, by damped iteration."""
    goal = law.to_unit(x)
    w = goal.clone()
    for _ in range(rounds if law.variance_power else 0):
        w += 0.5 * (goal - law.to_unit(law.unbiased_inverse(w).clamp_min(0)))
    return w.float()
