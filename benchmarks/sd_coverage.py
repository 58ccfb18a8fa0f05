#!/usr/bin/env python
"""How often the truth lies within one and two standard deviations that the SD map tells, on phantoms.

    python benchmarks/sd_coverage.py

Base weights as they are, or adapted (``--adapt-steps``); law, level and correlation known. Every voxel counts, and the
flat ones and those near an edge by themselves. Written as a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import torch
from arms.ours import trained_model, unit
from cases import COLUMNS, Volume, phantom, scan_of
from records import grid
from torch import Tensor
from torch.nn.functional import max_pool3d

from n2s_med.atomic import whole
from n2s_med.compute import Compute, set_threads
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.jobs.denoise import SD_PROBES
from n2s_med.score import base_model
from n2s_med.training import ADAPTATION

GOALS = ((0.63, 0.73), (0.92, 0.97))
"""Shares of the voxels that are to lie within one and two standard deviations."""

EDGE, NEAR = 0.05, 2
"""Difference of neighbouring voxels that is an edge, and how many voxels away is near one."""

HEAD = ("volume", "noise", "1 SD", "2 SD", "flat, 1 SD", "2 SD", "near edges, 1 SD", "2 SD", "SD / RMS error")


def main(argv: Sequence[str] | None = None) -> int:
    """Denoise with an SD map, hold it against the truth and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--phantom", nargs="+", choices=("brain", "ct", "pet"), default=["brain", "ct", "pet"])
    add("--crop", type=int, default=64, help="keep the middle, so many voxels an axis (default %(default)s)")
    add("--columns", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS), metavar="COLUMN", help="of %(choices)s")
    add("--adapt-steps", type=int, default=0, help="steps that adapt the base weights (default %(default)s)")
    add("--seeds", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("docs/coverage.md"))
    options = parser.parse_args(argv)
    set_threads(options.threads)
    rows, met = [], 0
    for name, column in itertools.product(options.phantom, options.columns):
        volume = phantom(name).cropped(options.crop)
        runs = [_run(volume, column, seed, options.adapt_steps) for seed in range(options.seeds)]
        figures = [statistics.fmean(values) for values in zip(*runs, strict=True)]
        met += all(low <= found <= high for found, (low, high) in zip(figures, GOALS, strict=False))
        rows.append(
            [volume.name, COLUMNS[column].title, *(f"{100 * f:.1f} %" for f in figures[:-1]), f"{figures[-1]:.2f}"]
        )
        print(" | ".join(rows[-1]), flush=True)
        with whole(options.out, overwrite=True) as partial:
            partial.write_text(_page(rows, met, options), encoding="utf-8")
    return 0


def _run(volume: Volume, column: str, seed: int, steps: int) -> list[float]:
    """Shares within one and two SDs of all voxels, of the flat ones and of those near edges; and SD over error."""
    scan = replace(scan_of(volume, column, seed), clean=None)
    compute = Compute.choose()
    model = base_model(volume.x.ndim)
    if steps:
        model, _ = trained_model(scan, scan.noise, replace(ADAPTATION, steps=steps), model, compute)
    else:
        model = model.centred(unit(scan, scan.noise).centre)
    result = Denoiser(model, scan.noise, compute, DenoiseOptions(sd_probes=SD_PROBES, seed=seed))(scan.y)
    assert result.sd is not None
    error, near = (result.x_hat - volume.x).abs(), near_edges(volume.x)
    shares = [
        float((error[part] < times * result.sd[part]).float().mean())
        for part in (scan.valid, scan.valid & ~near, scan.valid & near)
        for times in (1, 2)
    ]
    said, true = (float(part[scan.valid].square().mean().sqrt()) for part in (result.sd, error))
    return [*shares, said / true]


def near_edges(x: Tensor) -> Tensor:
    """Voxels of a volume near two neighbours that differ."""
    edge = torch.zeros_like(x)
    for axis in range(x.ndim):
        steps = (x.diff(dim=axis).abs() > EDGE).float()
        edge.narrow(axis, 1, steps.shape[axis]).add_(steps)
    return max_pool3d(edge[None, None], 2 * NEAR + 1, stride=1, padding=NEAR)[0, 0] > 0


def _page(rows: Sequence[Sequence[str]], met: int, options: argparse.Namespace) -> str:
    words = [
        *(("--phantom", *options.phantom) if len(options.phantom) < 3 else ()),
        *("--columns", *options.columns, "--adapt-steps", str(options.adapt_steps), "--seeds", str(options.seeds)),
    ]
    goal = " and ".join(f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in GOALS)
    text = f"""Made by the command below; volumes are cut to {options.crop} voxels an axis. Base weights
    {f"adapted in {options.adapt_steps} steps" if options.adapt_steps else "as they are"}, law, level and correlation
    known, {SD_PROBES} probes. 1 SD and 2 SD: share of the voxels whose error is below one and two of the standard
    deviations told. Near edges: within {NEAR} voxels of a step above {EDGE:g}, of a range of 1. Last: RMS of the
    standard deviation told over that of the error. The goal is {goal} of all voxels: met in {met} of {len(rows)}
    rows."""
    return f"""\
# How far the SD map can be trusted

{fill(" ".join(text.split()), 120)}

    python benchmarks/sd_coverage.py {" ".join(words)}

{grid(HEAD, rows)}
"""


if __name__ == "__main__":
    sys.exit(main())
