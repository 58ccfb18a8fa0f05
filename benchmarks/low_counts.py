#!/usr/bin/env python
"""Bias of regional means at few counts, estimate by estimate, against the truth and the noisy data's own mean.

    python benchmarks/low_counts.py --seeds 2

Counts of the PET phantom are drawn at several means of its background and denoised by the base weights as they are.
Background and hot spheres' cores are then averaged. Written as a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from records import grid
from torch import Tensor

from n2s_med.atomic import whole
from n2s_med.compute import Compute, set_threads
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.noise import Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.scan import ScanNoise
from n2s_med.phantoms import PetPhantom, pet_phantom
from n2s_med.score import base_model
from n2s_med.training import ADAPTATION, PatchSampler, Trainer, UnitVolume
from n2s_med.unit_data import UnitData

MEANS = (20.0, 5.0, 2.0, 1.0, 0.5)
PROBES = 2

HEAD = ("mean counts", "estimate", "RMS error", "background", "against the data", "hot spheres", "against the data")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, denoise, average and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--means", nargs="+", type=float, default=list(MEANS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--adapt-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/low_counts.md"))
    options = parser.parse_args(argv)
    set_threads(options.threads)
    phantom, rows = pet_phantom(), []
    for mean in options.means:
        runs = [_run(phantom, mean, seed, options.adapt_steps) for seed in range(options.seeds)]
        for name in runs[0]:
            figures = [statistics.fmean(values) for values in zip(*(run[name] for run in runs), strict=True)]
            rows.append([f"{mean:g}", name, f"{figures[0]:.3f}", *(f"{100 * bias:+.2f} %" for bias in figures[1:])])
            print(" | ".join(rows[-1]), flush=True)
    with whole(options.out, overwrite=True) as partial:
        partial.write_text(_page(rows, options), encoding="utf-8")
    return 0


def _run(phantom: PetPhantom, mean: float, seed: int, steps: int) -> Mapping[str, list[float]]:
    """RMS error in units of the root of the mean count, and biases, of each estimate."""
    x = phantom.activity * (mean / float(phantom.activity[phantom.background].mean()))
    y = Poisson(1.0).sample(x, torch.Generator().manual_seed(seed))
    regions = (phantom.background, phantom.sphere_cores[_hot(phantom)].any(0))
    out = {}
    for name, x_hat in {"the data": y, **_estimates(y, phantom.spacing_mm, seed, steps)}.items():
        error = float((x_hat - x).square().mean().sqrt()) / mean**0.5
        biases = [float(x_hat[r].mean() / of[r].mean()) - 1 for r in regions for of in (x, y)]
        out[name] = [error, *biases]
    return out


def _hot(phantom: PetPhantom) -> Tensor:
    return torch.tensor([sphere.contrast > 1 for sphere in phantom.spheres])


def _estimates(y: Tensor, spacing_mm: Sequence[float], seed: int, steps: int) -> Mapping[str, Tensor]:
    """The counts denoised by each formula, all from one score and one set of probes, and by ours."""
    law = Poisson(1.0)
    noise = ScanNoise(law, Correlation.white(), law.quantum)
    data = UnitData(y, torch.ones_like(y, dtype=torch.bool), noise)
    model = base_model(3).centred(float(data[tuple(slice(0, n) for n in y.shape)].mean()))
    options = DenoiseOptions(orientations=1, seed=seed, few_counts=False)
    told = Denoiser(model, noise, Compute.choose(), replace(options, sd_probes=PROBES))(y)
    assert told.sd is not None
    first = told.x_hat
    published = Denoiser(model, noise, Compute.choose(), replace(options, formula="published"))(y).x_hat
    ours = Denoiser(model, noise, Compute.choose(), replace(options, few_counts=True))(y).x_hat
    found = {"formula of the mean": first, "published formula": published}
    unit = told.sd.square() / law.variance(first.clamp_min(1e-6))  # of the posterior, in noise variances
    score = (published.clamp_min(1e-6) / (y + 0.5)).log()  # its own formula, solved for the score
    slope = law.score_derivative_from_unit(y, (score - law.unit_curvature(y)[0]) / law.unit_slope(y), unit - 1)
    found["second-order formula"] = law.posterior_mean(y, score, slope)
    u = noise.law.to_unit(noise.dequantised(y, torch.Generator().manual_seed(seed))).float()
    config = replace(ADAPTATION, steps=steps, seed=seed)
    volume = UnitVolume(u, torch.ones_like(y, dtype=torch.bool), noise, tuple(spacing_mm))
    source = PatchSampler([volume], edge=config.patch, held_out=config.held_out, seed=seed)
    trainer = Trainer(source, config, Compute.choose(), network=model.network)
    adapted = Denoiser(trainer.trained(), noise, Compute.choose(), replace(options, few_counts=True))(y).x_hat
    return {**found, "ours, base weights": ours, "ours, adapted": adapted}


def _page(rows: Sequence[Sequence[str]], options: argparse.Namespace) -> str:
    return f"""\
# Few counts

Written by `python benchmarks/low_counts.py --seeds {options.seeds}`: whole counts of the PET phantom (gain 1), law
and level known, one orientation. Mean counts: of the warm background. RMS error over all voxels, in roots of that
mean. Biases of the mean of the background and of the four hot spheres' cores against the truth, and against the mean
of the noisy counts in the same voxels.

The formulas are given the base weights as they are; the second-order one also the posterior variance, by {PROBES}
probes. Ours, base weights: the formula of the mean, moved towards the denoised sums of neighbouring counts where counts
are few, and to the regional means of the data (`n2s_med.few_counts`). Ours, adapted: by weights that
{options.adapt_steps} steps of count splitting taught the counts at hand (`n2s_med.score.splitting`), as `n2s-med
denoise` does.

{grid(HEAD, rows)}
"""


if __name__ == "__main__":
    sys.exit(main())
