#!/usr/bin/env python
"""Repeats against noise estimates from one scan: MR with repeats, and a simulated CT dose series with its truth.

    N2S_DATA=/path/to/data python benchmarks/repeats.py [--adapt 0]

Noise from repeats is the standard deviation of differences of repeats over the root of two, smoothed drift and all
taken off; noise from one scan is what ``n2s-med denoise`` finds. Both series are denoised by that command, and the
results held against each other and, for the CT, against its truth. Writes a page and two pictures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from records import grid

from n2s_med.atomic import whole
from n2s_med.compute import set_threads
from n2s_med.jobs.denoise import DenoiseJob
from n2s_med.jobs.noise import NoiseRequest
from n2s_med.jobs.scans import scans_of
from n2s_med.modalities import modality_named
from n2s_med.training import ADAPTATION
from n2s_med.volumes import read

Array = NDArray[np.floating[Any]]

REPEATS = {
    "GE fMRI phantom, 3 repeats": ("mr/dicom_ge_architect_fmri_4d_classic", "repeats_fmri"),
    "EPI of a head, 2 repeats": ("nifti_small/nibabel/example4d.nii.gz", "repeats_epi"),
}
"""Scans with repeats, and the names of their pictures."""

DOSES = "ct_dose_simulated/lcd_ct/fbp"
OFFSET_HU = 1000
INSIDE = 0.15
"""The object is where the mean of the repeats is above this share of its bright end."""

FLAT_HU = 1.0
"""A region of the CT phantom is flat where its truth changes by less than this to all neighbours."""

PAGE, FIGURES = Path("docs/repeats.md"), Path("docs/figures")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, denoise and write; the exit status."""
    options = _parser().parse_args(argv)
    root = os.environ.get("N2S_DATA")
    if not root:
        print("repeats: N2S_DATA names no folder of real scans", file=sys.stderr)
        return 1
    set_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        repeated = [
            _repeated(name, Path(root) / source, Path(work), options, picture)
            for name, (source, picture) in REPEATS.items()
        ]
        ct = _ct(Path(root) / DOSES, Path(work), options)
    with whole(options.out, overwrite=True) as partial:
        partial.write_text(_page([*repeated, *ct], options), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapt", type=float, default=0.0, help="seconds of adaptation of each scan")
    add("--threads", type=int, default=1)
    add("--realisations", type=int, default=10, help="of each dose")
    add("--out", type=Path, default=PAGE)
    add("--figures", type=Path, default=FIGURES)
    return parser


def _denoise(source: Path, out: Path, options: argparse.Namespace, modality: str | None = None) -> dict[str, Any]:
    """Denoise as the command line does; the report's figures."""
    config = replace(ADAPTATION, seconds=options.adapt) if options.adapt else None
    job = DenoiseJob(source, out, modality=modality, config=config, quiet=True)
    (result,) = job.run(lambda _: None)
    report: dict[str, Any] = json.loads(result.report.with_suffix(".json").read_text())
    return {**report["figures"], "passed": [v["passed"] for v in report["verdicts"]]}


# -- MR with repeats -------------------------------------------------------------------------------------


def _repeated(name: str, source: Path, work: Path, options: argparse.Namespace, picture: str) -> list[str]:
    """One line of the table, and its picture."""
    y = read(source).volumes[0].as_tensor().numpy()
    out = work / (f"{picture}.nii.gz" if source.is_file() else picture)
    told = _denoise(source, out, options, "mr")
    x_hat = read(out).volumes[0].as_tensor().numpy()
    mean = y.mean(0)
    inside = mean > INSIDE * np.quantile(mean, 0.99)
    between = _between(y, inside)
    _picture(
        [y[0], x_hat[0], y[0] - x_hat[0]],
        ["first repeat", "denoised", "difference"],
        options.figures / f"{picture}.png",
    )
    noise = told["noise"]
    return [
        name,
        noise["law"],
        f"{between:.2f}" if between else "none: the files repeat the same values",
        f"{_level_at(noise, float(np.median(mean[inside]))):.2f}",
        _lags(_differences(y), inside) if between else "–",
        "/".join(f"{lag:.2f}" for lag in noise["neighbour_correlation"]),
        f"{_between(x_hat, inside) / between:.2f}" if between else "–",
        f"{100 * (x_hat[:, inside].mean() / y[:, inside].mean() - 1):+.2f} %",
        f"{told['clean-free figures']['error_after_in_noise_variances']:.2f}",
        "–",
        "–",
        f"{sum(told['passed'])} of {len(told['passed'])}",
    ]


def _differences(repeats: Array) -> Array:
    """Differences of repeats over the root of two, of unit gain on the noise; their common level taken off."""
    pairs = [(a - b) / 2**0.5 for a, b in itertools.pairwise(repeats)]
    return np.stack([d - np.median(d) for d in pairs])


def _between(repeats: Array, inside: NDArray[np.bool_]) -> float:
    """Standard deviation of the noise by the differences of repeats, by the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(_differences(repeats)[:, inside])))


def _lags(differences: Array, inside: NDArray[np.bool_]) -> str:
    """Correlation of neighbouring voxels along each axis, as text."""
    found = []
    for axis in range(inside.ndim):
        here, there = (_cut(inside.ndim, axis, end) for end in (slice(None, -1), slice(1, None)))
        both = inside[here] & inside[there]
        products = differences[(slice(None), *here)][:, both] * differences[(slice(None), *there)][:, both]
        found.append(products.mean() / differences[:, inside].var())
    return "/".join(f"{lag:.2f}" for lag in found)


def _cut(ndim: int, axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if a == axis else slice(None) for a in range(ndim))


def _level_at(noise: dict[str, Any], intensity: float) -> float:
    """Standard deviation by the law found, at an intensity."""
    power = {"gaussian": 0.0, "poisson": 1.0, "gamma": 2.0}.get(noise["law"], noise.get("power", 0.0))
    dispersion = {
        "gaussian": lambda: noise["sigma"] ** 2,
        "poisson": lambda: noise["gain"],
        "gamma": lambda: 1 / noise["k"],
        "tweedie": lambda: noise["dispersion"],
    }[noise["law"]]()
    return float((dispersion * intensity**power) ** 0.5)


# -- CT dose series --------------------------------------------------------------------------------------


def _ct(source: Path, work: Path, options: argparse.Namespace) -> list[list[str]]:
    """A line for each dose, and a picture of the lowest one."""
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "ground_truth.mhd"))).T.astype(float) - OFFSET_HU
    flat = _flat(truth)
    rows, pictures = [], []
    for folder in sorted(source.glob("dose_*")):
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "signal_present" / "signal_present.mhd")))
        y = stored.transpose(0, 2, 1).astype(float)[: options.realisations] - OFFSET_HU
        done = [_slice(scan, work / f"{folder.name}_{n}", options) for n, scan in enumerate(y)]
        x_hat, told, levels = np.stack([d[0] for d in done]), [d[1] for d in done], [d[2] for d in done]
        rows.append(_ct_row(folder.name, truth, flat, y, x_hat, told, levels))
        if not pictures:
            pictures = [y[0], x_hat[0], y[0] - x_hat[0], truth]
    names = ["lowest dose", "denoised", "difference", "truth"]
    _picture([p[..., None] for p in pictures], names, options.figures / "repeats_ct.png")
    return rows


def _slice(scan: Array, stem: Path, options: argparse.Namespace) -> tuple[Array, dict[str, Any], Array]:
    """One realisation denoised as a single slice in a NIfTI file; what is told, and the SD found at each pixel."""
    image = nib.Nifti1Image(scan[..., None].astype(np.float32), np.eye(4))
    source, out = stem.with_name(f"{stem.name}.nii.gz"), stem.with_name(f"{stem.name}_out.nii.gz")
    nib.save(image, source)
    told = _denoise(source, out, options, "ct")
    law = scans_of(read(source).volumes[0], modality_named("ct"), NoiseRequest())[0].choice.noise.law
    sd = law.variance(torch.zeros(scan.shape)).sqrt()
    return np.asarray(nib.load(out).dataobj, dtype=float)[..., 0], told, sd.numpy()


def _ct_row(
    name: str,
    truth: Array,
    flat: NDArray[np.bool_],
    y: Array,
    x_hat: Array,
    told: list[dict[str, Any]],
    levels: list[Array],
) -> list[str]:
    """Levels over the flat regions; correlation and risk over them too."""
    noise = [t["noise"] for t in told]
    found = [float(np.sqrt((level[flat] ** 2).mean())) for level in levels]
    sd = y.std(0, ddof=1)
    true = float(np.sqrt((sd[flat] ** 2).mean()))
    lags = np.array([n["neighbour_correlation"] for n in noise]).mean(0)
    before, after = (np.sqrt(((v - truth) ** 2)[:, flat].mean()) for v in (y, x_hat))
    return [
        f"CT, {int(name.split('_')[1])} % dose, {len(y)} realisations",
        "/".join(sorted({n["law"] for n in noise})),
        f"{true:.1f}",
        f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f}",
        _lags(y - y.mean(0), flat),
        "/".join(f"{lag:.2f}" for lag in lags),
        f"{np.sqrt((x_hat.var(0, ddof=1)[flat]).mean()) / true:.2f}",
        f"{(x_hat - y)[:, flat].mean():+.2f} HU",
        f"{statistics.fmean(t['clean-free figures']['error_after_in_noise_variances'] for t in told):.2f}",
        f"{(after / before) ** 2:.2f}",
        f"{before:.1f} → {after:.1f} HU",
        f"{statistics.fmean(sum(t['passed']) for t in told):.1f} of {len(told[0]['passed'])}",
    ]


def _flat(truth: Array) -> NDArray[np.bool_]:
    """Where the truth hardly changes, within the body."""
    steps = np.zeros_like(truth)
    for axis, way in itertools.product((0, 1), (-1, 1)):
        steps = np.maximum(steps, np.abs(np.roll(truth, way, axis) - truth))
    return (steps < FLAT_HU) & (truth > -OFFSET_HU / 2)


# -- what is written -------------------------------------------------------------------------------------


def _picture(volumes: Sequence[Array], names: Sequence[str], path: Path) -> None:
    """The middle slice of each, all but the difference in the window of the denoised one."""
    planes = [v[..., v.shape[-1] // 2].T for v in volumes]
    low, high = np.quantile(planes[1], [0.02, 0.995])
    figure = Figure(figsize=(2.4 * len(planes), 2.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (plane, name) in enumerate(zip(planes, names, strict=True), start=1):
        axes = figure.add_subplot(1, len(planes), place)
        about = 3 * plane.std()
        window = (-about, about) if name == "difference" else (low, high)
        axes.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1])
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path, overwrite=True) as partial:
        figure.savefig(partial, format="png")


HEAD = (
    "series",
    "law",
    "noise SD between repeats",
    "from one scan",
    "neighbours between repeats",
    "from one scan",
    "noise left, SD",
    "mean moves by",
    "error left, told",
    "true",
    "RMS error",
    "checks passed",
)


def _page(rows: Sequence[Sequence[str]], options: argparse.Namespace) -> str:
    return f"""\
# Repeats and a dose series

Written by `python benchmarks/repeats.py --adapt {options.adapt:g} --realisations {options.realisations}`.
Noise between repeats: of MR from the
differences of successive repeats (robustly), in the CT series the SD over the realisations where the truth is flat.
From one scan: what `n2s-med denoise` found, at the median intensity of the object; for the CT, whose noise varies in
space, the root mean square of the map found over the same flat regions, mean over the realisations. Noise left: SD
between the denoised repeats over that of the noisy ones. Error left, in noise variances: told by Stein's estimate
without a truth, and true where there is one. The CT is simulated (MITA-LCD, filtered backprojection); each realisation
is denoised alone, as a single slice. Neighbours from one scan are as measured; where texture of MR passes for flat they
are those of the texture, the noise taken is white, and the check "noise level" fails.

{grid(HEAD, rows)}

![GE fMRI phantom](figures/repeats_fmri.png)

![EPI of a head](figures/repeats_epi.png)

![CT at the lowest dose](figures/repeats_ct.png)
"""


if __name__ == "__main__":
    sys.exit(main())
