"""n2s-med itself, trained on the one noisy scan; never near a clean volume."""

from __future__ import annotations

from dataclasses import replace

import torch
from cases import Scan

from arms.base import Result, Settings
from n2s_med.denoise import Denoiser
from n2s_med.noise.estimate import estimate
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel
from n2s_med.training import PatchSampler, Trainer, UnitVolume


def ours(scan: Scan, settings: Settings) -> Result:
    """Told the law, its level and the correlation."""
    return _denoised(scan, scan.noise, settings)


def ours_blind(scan: Scan, settings: Settings) -> Result:
    """Told the law's name alone."""
    law = scan.noise.law
    found = estimate(scan.y, scan.valid, scan.spacing_mm, law.name, seed=scan.seed)
    result = _denoised(scan, found.noise, settings)
    (level,), (true,) = found.noise.law.parameters.values(), law.parameters.values()
    neighbour = max(found.neighbour_correlation)
    return Result(result.x_hat, {**result.notes, "level": level / true, "neighbour_correlation": round(neighbour, 3)})


def _denoised(scan: Scan, noise: ScanNoise, settings: Settings) -> Result:
    """Train on the scan (counts dequantised), then denoise it."""
    generator = torch.Generator().manual_seed(scan.seed)
    u = noise.law.to_unit(noise.dequantised(scan.y, generator)).float()
    config = replace(settings.config, seed=scan.seed)
    volume = UnitVolume(u, noise.admits(scan.y), noise, scan.spacing_mm)
    source = PatchSampler([volume], edge=config.patch, held_out=config.held_out, seed=config.seed)
    trainer = Trainer(source, config, settings.compute)
    network = trainer.run()
    denoised = Denoiser(ScoreModel(network, trainer.objective.scale), noise, settings.compute)(scan.y)
    figures = denoised.figures
    return Result(
        denoised.x_hat,
        {
            "risk": figures.risk,
            "step": figures.step,
            "step_sure": figures.step_sure,
            "held_out_sure": min(trainer.history.sure),
        },
    )
