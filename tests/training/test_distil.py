"""A network taught by another: its target is the teacher's mean over flips, of data as noisy as ever."""

from __future__ import annotations

import itertools

import torch

from n2s_med.compute import Compute
from n2s_med.noise import Gaussian
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel, ScoreUNet
from n2s_med.training import Distiller, PatchSampler, TrainingConfig, UnitVolume

CPU = Compute(torch.device("cpu"), bf16=False)
CONFIG = TrainingConfig(steps=150, patch=8, channels=(4, 8), checks=10, held_out=0.1, objective="total-unit-noise")


def distiller() -> Distiller:
    generator = torch.Generator().manual_seed(0)
    u = 4 * torch.rand((14, 14, 14), generator=generator) + torch.randn((14, 14, 14), generator=generator)
    noise = ScanNoise(Gaussian(1.0), Correlation.white())
    volume = UnitVolume(u, torch.ones_like(u, dtype=torch.bool), noise, (1.0, 1.0, 1.0))
    source = PatchSampler([volume], edge=CONFIG.patch, held_out=CONFIG.held_out, seed=0)
    torch.manual_seed(1)
    teacher = ScoreUNet(3, (6, 8))
    torch.nn.init.normal_(teacher.head.weight, std=0.1)  # one that tells flips apart
    return Distiller(source, CONFIG, CPU, teacher=ScoreModel(teacher))


def mean_over_flips(teacher: ScoreUNet, v: torch.Tensor, traits: torch.Tensor) -> torch.Tensor:
    flips = [[a + 2 for a in some] for n in range(4) for some in itertools.combinations(range(3), n)]
    return torch.stack([teacher(v.flip(f), traits).flip(f) for f in flips]).mean(0)


@torch.no_grad()
def test_the_target_is_the_mean_over_flips() -> None:
    trainer = distiller()
    generator = torch.Generator().manual_seed(2)
    patch = trainer.source.draw(generator)
    ((_, shown, _),) = trainer._perturbed(patch, generator)
    assert not torch.equal(shown, patch.u)
    traits, teacher = patch.noise.correlation.traits, trainer.teacher.network
    drawn = torch.stack([trainer._taught(shown, traits, generator) for _ in range(200)])
    once, mean = teacher(shown, traits[None]), mean_over_flips(teacher, shown, traits[None])
    assert float((once - mean).std()) > 5 * float((drawn.mean(0) - mean).std())
    turned = teacher(shown.flip(2, 3, 4), traits[None]).flip(2, 3, 4)
    assert any(torch.allclose(target, (once + turned) / 2, atol=1e-5) for target in drawn)


def test_it_learns_what_the_teacher_says() -> None:
    trainer = distiller()
    v = trainer.source.volumes[0].u[None, None]
    traits = torch.zeros(1, 6)
    wanted = mean_over_flips(trainer.teacher.network, v, traits)

    @torch.no_grad()
    def error(network: ScoreUNet) -> float:
        return float((network(v, traits) - wanted).square().mean())

    before = error(trainer.network)
    assert error(trainer.run()) < 0.5 * before


def test_another_teacher_is_another_run() -> None:
    first, second = distiller(), distiller()
    second.teacher.network.head.weight.data += 1
    assert first._identity() != second._identity()
