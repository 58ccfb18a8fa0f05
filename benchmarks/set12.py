"""The natural images of Noise2Score's table 2, in two dimensions, by the package's base weights.

    N2S_DATA=/path/to/data python benchmarks/set12.py [--adapt-steps 300]

The base weights have seen planes of generated volumes and of medical scans, and no photograph; they are adapted to
each noisy image alone. The article's networks were trained on some thousand photographs. The noisy files are its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from records import psnr, write_between_markers
from torch import Tensor

from n2s_med.compute import Compute, set_threads
from n2s_med.denoise import Denoiser
from n2s_med.noise import Gamma, Gaussian, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.score import base_model
from n2s_med.training import ADAPTATION, PatchSampler, Trainer, UnitVolume
from n2s_med.unit_data import to_unit

PLANE = Correlation.white(2)
NOISES = {
    "Gaussian 25": ("noisy_25", ScanNoise(Gaussian(25 / 255), PLANE), 30.13),
    "Poisson .01": ("noisy_0.01", ScanNoise(Poisson(0.01), PLANE, quantum=0.01), 31.58),
    "Gamma 100": ("noisy_g_100", ScanNoise(Gamma(100.0), PLANE), 33.01),
}
"""Folder of the noisy images, their noise, and the article's mean PSNR (table 2)."""

PATCH = 64


def main() -> None:
    """Denoise all images and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapt-steps", type=int, default=300, help="0 takes the base weights as they are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/set12.md"))
    arguments = parser.parse_args()
    folder = Path(os.environ.get("N2S_DATA", "")) / "natural" / "set12_noise2score"
    if not folder.is_dir():
        sys.exit("N2S_DATA names no folder of data with natural/set12_noise2score")
    set_threads(arguments.threads)
    rows = [row for name in NOISES for row in _rows(folder, name, arguments.adapt_steps)]
    numbers = [f"{n:02d}" for n in range(1, 13)]
    head = ["| PSNR, dB | mean | " + " | ".join(numbers) + " |", "|---" * (len(numbers) + 2) + "|"]
    command = f"python benchmarks/set12.py --adapt-steps {arguments.adapt_steps}"
    text = (
        "## Natural images: Set12, the noisy files of Noise2Score\n\nMade by `" + command + "`; the noise is known."
        "\nThe base weights have seen no photograph; the article's networks some thousand (its means are quoted)."
    )
    write_between_markers(arguments.out, "\n".join([text, "", *head, *rows]) + "\n")
    print("\n".join([*head, *rows]))


def _rows(folder: Path, name: str, steps: int) -> Iterator[str]:
    """Noisy, base weights as they are, adapted, and the article's mean, for one noise."""
    directory, noise, article = NOISES[name]
    found: dict[str, list[float]] = {"noisy": [], "base weights": [], "adapted": []}
    for file in sorted((folder / directory).glob("*.npz")):
        y, x = (_image(folder / place / file.name) for place in (directory, "clean"))
        found["noisy"].append(psnr(y, x))
        found["base weights"].append(psnr(_denoised(y, noise, 0), x))
        if steps:
            found["adapted"].append(psnr(_denoised(y, noise, steps), x))
        print(
            name, file.stem, [f"{values[-1]:.2f}" for values in found.values() if values], file=sys.stderr, flush=True
        )
    for title, values in found.items():
        if values:
            cells = " | ".join(f"{value:.2f}" for value in values)
            yield f"| {name}, {title} | **{np.mean(values):.2f}** | {cells} |"
    yield f"| {name}, Noise2Score's own | {article:.2f} |" + " |" * len(found["noisy"])


def _image(file: Path) -> Tensor:
    return torch.as_tensor(np.load(file)["image"], dtype=torch.float32)


def _denoised(y: Tensor, noise: ScanNoise, steps: int) -> Tensor:
    """One image by the base weights, adapted to it in so many steps."""
    compute, valid = Compute.choose(), noise.admits(y)  # zeros have no speckle
    u = to_unit(y, valid, noise, torch.Generator().manual_seed(0))
    volume = UnitVolume(u, valid, noise, (1.0, 1.0))
    model = base_model(2).centred(volume.centre)
    if steps:
        config = replace(ADAPTATION, steps=steps, patch=PATCH)
        source = PatchSampler([volume], edge=PATCH, held_out=config.held_out, seed=config.seed)
        trainer = Trainer(source, config, compute, network=model.network)
        model = trainer.trained()
    return Denoiser(model, noise, compute)(y[..., None]).x_hat[..., 0]


if __name__ == "__main__":
    main()
