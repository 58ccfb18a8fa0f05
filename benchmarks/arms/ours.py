"""n2s-med itself: trained or adapted on the one noisy scan; never near a clean volume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from cases import Scan

from arms.base import Result, Settings
from n2s_med.compute import Compute
from n2s_med.denoise import FOR_TRAINED, DenoiseOptions, Denoiser
from n2s_med.noise.estimate import estimate
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import ScoreModel, base_model
from n2s_med.training import PatchSampler, Trainer, TrainingConfig, UnitVolume

SMALL = Path("base-3d-small")


def ours(scan: Scan, settings: Settings) -> Result:
    """A new network, told the law, its level and the correlation."""
    return _trained(scan, scan.noise, settings.config, None, settings)


def ours_blind(scan: Scan, settings: Settings) -> Result:
    """A new network, told the law's name alone."""
    noise, found = _found(scan)
    return _with(_trained(scan, noise, settings.config, None, settings), found)


def base(scan: Scan, settings: Settings) -> Result:
    """The base weights as they are."""
    return as_they_are(scan, base_model(scan.y.ndim), settings)


def small(scan: Scan, settings: Settings) -> Result:
    """The small weights as they are, in one pass."""
    return as_they_are(scan, ScoreModel.load(SMALL), settings, passes=1)


def as_they_are(scan: Scan, model: ScoreModel, settings: Settings, passes: int | None = None) -> Result:
    """Weights of any scan, not adapted to this one."""
    return _denoised(scan, scan.noise, model.centred(unit(scan, scan.noise).centre), settings, passes)


def adapted(scan: Scan, settings: Settings) -> Result:
    """The base weights adapted to the scan, told the law, its level and the correlation."""
    return _trained(scan, scan.noise, settings.adaptation, base_model(scan.y.ndim), settings)


def adapted_blind(scan: Scan, settings: Settings) -> Result:
    """The base weights adapted to the scan, told the law's name alone."""
    noise, found = _found(scan)
    return _with(_trained(scan, noise, settings.adaptation, base_model(scan.y.ndim), settings), found)


def _found(scan: Scan) -> tuple[ScanNoise, dict[str, float]]:
    """The noise estimated from the scan, and how far off its level is."""
    law = scan.noise.law
    found = estimate(scan.y, scan.valid, scan.spacing_mm, law.name, seed=scan.seed)
    (level,), (true,) = found.noise.law.parameters.values(), law.parameters.values()
    neighbour = max(found.neighbour_correlation)
    return found.noise, {"level": level / true, "neighbour_correlation": round(neighbour, 3)}


def _with(result: Result, notes: dict[str, float]) -> Result:
    return Result(result.x_hat, {**result.notes, **notes})


def unit(scan: Scan, noise: ScanNoise) -> UnitVolume:
    """The scan in the unit-noise domain, counts dequantised."""
    generator = torch.Generator().manual_seed(scan.seed)
    u = noise.law.to_unit(noise.dequantised(scan.y, generator)).float()
    return UnitVolume(u, noise.admits(scan.y), noise, scan.spacing_mm)


def _trained(
    scan: Scan, noise: ScanNoise, config: TrainingConfig, start: ScoreModel | None, settings: Settings
) -> Result:
    model, risk = trained_model(scan, noise, config, start, settings.compute)
    return _with(_denoised(scan, noise, model, settings, FOR_TRAINED), {"held_out_sure": risk})


def trained_model(
    scan: Scan, noise: ScanNoise, config: TrainingConfig, start: ScoreModel | None, compute: Compute
) -> tuple[ScoreModel, float]:
    """A model trained on the scan, or adapted to it, and its risk on held-out voxels."""
    config = replace(config, seed=scan.seed)
    source = PatchSampler([unit(scan, noise)], edge=config.patch, held_out=config.held_out, seed=config.seed)
    network = start.centred(source.centre).network if start else None
    trainer = Trainer(source, config, compute, network=network)
    return trainer.trained(), min(trainer.history.sure)


def _denoised(scan: Scan, noise: ScanNoise, model: ScoreModel, settings: Settings, passes: int | None = None) -> Result:
    options = DenoiseOptions(orientations=passes)
    denoised = Denoiser(model, noise, settings.compute, options)(scan.y)
    figures = denoised.figures
    return Result(denoised.x_hat, {"risk": figures.risk, "step": figures.step, "step_sure": figures.step_sure})
