"""Training: voxels a second against a plain MONAI pipeline, and the time to BM4D's quality."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from arms import ARMS, Settings
from cases import phantom, scan_of
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, CopyItemsd, RandFlipd, RandGaussianNoised, RandSpatialCropSamplesd
from records import psnr
from torch import nn
from unet import UNet

from n2s_med.compute import Compute
from n2s_med.training import ADAPTATION, PatchSampler, Trainer, TrainingConfig, UnitVolume
from performance.base import Record, Sizes

WARM_STEPS = 3


def training(sizes: Sizes) -> Record:
    """Voxels a second of the patches that pass each training."""
    scan = scan_of(phantom("brain").cropped(sizes.crop or max(phantom("brain").x.shape)), "g25", 0)
    u = scan.noise.law.to_unit(scan.y).float()
    steps = WARM_STEPS + sizes.steps + 1
    config = TrainingConfig(steps=steps, checks=1, held_out=ADAPTATION.held_out)
    times: list[float] = []
    source = PatchSampler([UnitVolume(u, scan.valid, scan.noise, scan.spacing_mm)], edge=config.patch,
                          held_out=config.held_out, seed=config.seed)  # fmt: skip
    Trainer(source, config, Compute.choose("cpu")).run(lambda *_: times.append(time.perf_counter()))
    voxels = config.patches * config.patch**3
    return {
        "ours": voxels / _step_s(times),
        "monai": voxels / _step_s(_monai(u, config)),
        "patch": config.patch,
        "patches": config.patches,
    }


def _step_s(times: Sequence[float]) -> float:
    """Seconds a step, without the first steps and the last, which checks are part of."""
    timed = times[WARM_STEPS:-1]
    return (timed[-1] - timed[0]) / (len(timed) - 1)


def _monai(u: torch.Tensor, config: TrainingConfig) -> list[float]:
    """When each iteration of MONAI's trainer ended: the plain UNet learns to take added noise away again."""
    keys, axes = ("noisier", "noisy"), range(3)
    crop = RandSpatialCropSamplesd(keys, (config.patch,) * 3, config.patches, random_size=False)
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in axes]
    noise = RandGaussianNoised("noisier", prob=1.0, std=config.sigma_a)
    transform = Compose([CopyItemsd("noisy", names="noisier"), crop, *flips, noise])
    network, times = UNet(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=DataLoader(
                CacheDataset([{"noisy": u[None]}] * config.steps, transform, progress=False), batch_size=1
            ),
            network=network,
            optimizer=torch.optim.Adam(network.parameters()),
            loss_function=nn.MSELoss(),
            prepare_batch=lambda batch, *_, **__: (batch["noisier"], batch["noisy"]),
        )
        trainer.logger.setLevel(logging.WARNING)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: times.append(time.perf_counter()))
        trainer.run()
    return times


# -- time to quality -------------------------------------------------------------------------------------


def quality(sizes: Sizes) -> Record:
    """PSNR and CPU time of BM4D, of the base weights as they are, and adapted for several numbers of steps."""
    whole = phantom("brain")
    volume = whole.cropped(sizes.crop) if sizes.crop else whole
    scan = scan_of(volume, "g25", 0)
    blind = replace(scan, clean=None)
    arms: Mapping[str, tuple[str, int]] = {
        "BM4D": ("bm4d", 0),
        "base weights as they are": ("base", 0),
        **{f"adapted for {steps:,} steps": ("adapted", steps) for steps in sizes.adapt_steps},
    }
    rows = []
    for name, (arm, steps) in arms.items():
        settings = Settings(TrainingConfig(), replace(ADAPTATION, steps=steps), Compute.choose("cpu"))
        begun = time.process_time()
        x_hat = ARMS[arm].run(blind, settings).x_hat
        rows.append({"name": name, "steps": steps, "cpu_s": time.process_time() - begun, "psnr": psnr(x_hat, volume.x)})
    return {"rows": rows, "shape": list(volume.x.shape)}
