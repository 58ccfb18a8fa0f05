"""The network and the denoiser on a GPU, where there is one."""

from __future__ import annotations

import torch

from n2s_med.compute import Compute
from n2s_med.denoise import Denoiser
from n2s_med.noise import Gaussian
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import base_model
from performance.base import Record, Sizes, best_s, noisy_waves
from performance.rates import rates

VOLUMES = {"CT": (512, 512, 300), "whole-body PET": (256, 256, 640)}


def on_gpu(sizes: Sizes) -> Record:
    """Rates of the network, and of whole volumes from memory to memory; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return {}
    compute = Compute.choose("cuda")
    denoiser = Denoiser(base_model(3), ScanNoise(Gaussian(1.0), Correlation.white()), compute)
    rows = []
    for name, shape in VOLUMES.items():
        y = noisy_waves(shape)
        rows.append({"name": name, "shape": shape, "voxels_per_s": y.numel() / best_s(lambda y=y: denoiser(y), 1)})
    return {"name": torch.cuda.get_device_name(), "rates": rates(sizes, compute), "volumes": rows}
