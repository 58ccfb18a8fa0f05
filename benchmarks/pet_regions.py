#!/usr/bin/env python
"""What denoising does to the quantities read off a PET scan: variation of flat tissue, SUV of the hottest regions.

    N2S_DATA=/path/to/data python benchmarks/pet_regions.py [--seconds 30]

The scan is denoised by ``n2s-med denoise``. Regions are found in the noisy scan alone and then read in both: flat ones
are the spheres of 15 mm radius, of a liver's uptake, whose smoothed uptake varies least; hot ones are the spheres of
one millilitre (SUVpeak) with the most uptake.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import grid, write_between_markers
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from n2s_med.volumes import read

Array = NDArray[np.floating[Any]]
Place = tuple[int, ...]

SCAN = "pet/dicom_ge_discoveryst_sts001"
FLAT_MM, FLAT_SUV, SMOOTH_MM = 15.0, (1.0, 4.0), 8.0
"""Radius of a flat region, its range of uptake, and SD of the filter under which it varies least."""

PEAK_MM, CONTOUR_MM, CONTOUR = 6.2, 20.0, 0.41
"""Radius of one millilitre; SUVmean is over voxels above this share of the maximum so near to it."""

APART_MM = 40.0
"""Between the centres of two regions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Denoise, measure and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="time budget of the adaptation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/real_scans.md"))
    options = parser.parse_args(argv)
    data = os.environ.get("N2S_DATA")
    if not data:
        print("pet_regions: N2S_DATA names no folder of real scans", file=sys.stderr)
        return 1
    source = Path(data) / SCAN
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "denoised"
        command = [sys.executable, "-m", "n2s_med", "denoise", str(source), str(out), "--quiet"]
        command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (noisy, spacing), (denoised, _) = _suv(source), _suv(out)
    command_line = f"python benchmarks/pet_regions.py --seconds {options.seconds:g} --threads {options.threads}"
    told = f"""Written by `{command_line}`: the GE PET, whole body, by `n2s-med denoise`. Regions are found in the noisy
    scan. Flat: spheres of {FLAT_MM:g} mm radius, uptake {FLAT_SUV[0]:g} to {FLAT_SUV[1]:g}; variation is SD over mean;
    last, all the places of the flattest tenth, the mean and SD of their shifts. Hot: SUVpeak is over one millilitre,
    SUVmean over the voxels above {CONTOUR:.0%} of the maximum, by the noisy scan."""
    told = textwrap.fill(" ".join(told.split()), 120)
    tables = grid(*_flat(noisy, denoised, spacing)), grid(*_hot(noisy, denoised, spacing))
    write_between_markers(options.out, "\n\n".join([told, *tables]), "regions")
    return 0


def _suv(folder: Path) -> tuple[Array, tuple[float, ...]]:
    """A PET series in SUV by body weight, and its spacing."""
    (volume,) = read(folder).volumes
    return volume.numpy()[0] * volume.meta["suv"]["factor"], tuple(volume.meta["spacing_mm"])


def _flat(noisy: Array, denoised: Array, spacing: tuple[float, ...]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the three flattest regions."""
    ball = _ball(FLAT_MM, spacing)
    smooth = gaussian_filter(noisy, [SMOOTH_MM / s for s in spacing])
    mean = _mean(smooth, ball)
    variation = np.sqrt(np.maximum(_mean(smooth**2, ball) - mean**2, 0)) / np.maximum(mean, FLAT_SUV[0])
    fit = (mean >= FLAT_SUV[0]) & (mean <= FLAT_SUV[1]) & _inside(noisy.shape, ball.shape)
    rows = []
    for place in _best(np.where(fit, -variation, -np.inf), spacing, 3):
        before, after = (_values(x, place, ball) for x in (noisy, denoised))
        shift = after.mean() / before.mean() - 1
        share = [values.std() / values.mean() for values in (before, after)]
        rows.append([f"{before.mean():.2f}", f"{share[0]:.1%}", f"{share[1]:.1%}", f"{shift:+.1%}"])
    flattest = fit & (variation < np.quantile(variation[fit], 0.1))
    means, shifts = (_mean(x, ball)[flattest] for x in (noisy, denoised - noisy))
    shifts = shifts / means
    rows.append([f"all: {means.mean():.2f}", "", "", f"{shifts.mean():+.1%} ± {shifts.std():.1%}"])
    return ["flat: SUVmean", "variation, noisy", "denoised", "SUVmean shifts by"], rows


def _hot(noisy: Array, denoised: Array, spacing: tuple[float, ...]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the five hottest regions."""
    peak, around = _ball(PEAK_MM, spacing), _ball(CONTOUR_MM, spacing)
    fit = _inside(noisy.shape, around.shape)
    rows = []
    for place in _best(np.where(fit, _mean(noisy, peak), -np.inf), spacing, 5):
        before, after = (_values(x, place, around) for x in (noisy, denoised))
        core = before > CONTOUR * before.max()
        pairs = (
            (before.max(), after.max()),
            (_values(noisy, place, peak).mean(), _values(denoised, place, peak).mean()),
            (before[core].mean(), after[core].mean()),
        )
        rows.append([f"{a:.2f} → {b:.2f} ({b / a - 1:+.1%})" for a, b in pairs])
    return ["hot: SUVmax", "SUVpeak", "SUVmean"], rows


def _ball(radius_mm: float, spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The voxels of a sphere, in an odd box around it."""
    axes = [np.arange(-(n := int(radius_mm / s)), n + 1) * s for s in spacing]
    distance: Array = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    return distance <= radius_mm**2


def _mean(x: Array, ball: NDArray[np.bool_]) -> Array:
    """Mean over the sphere around each voxel."""
    means: Array = fftconvolve(x, ball / ball.sum(), mode="same")
    return means


def _inside(shape: Sequence[int], box: Sequence[int]) -> NDArray[np.bool_]:
    """Centres whose box lies within the volume."""
    inside = np.zeros(shape, dtype=bool)
    inside[tuple(slice(n // 2, -(n // 2) or None) for n in box)] = True
    return inside


def _best(figure: Array, spacing: Sequence[float], count: int) -> Iterator[Place]:
    """The places of the largest figures, far enough apart."""
    figure = figure.copy()
    axes = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(figure.shape, spacing, strict=True)), indexing="ij", sparse=True
    )
    for _ in range(count):
        place = np.unravel_index(int(figure.argmax()), figure.shape)
        yield tuple(int(i) for i in place)
        near = sum((axis - i * s) ** 2 for axis, i, s in zip(axes, place, spacing, strict=True)) < APART_MM**2
        figure[near] = -np.inf


def _values(x: Array, place: Place, ball: NDArray[np.bool_]) -> Array:
    """The voxels of the sphere at a place."""
    cut = tuple(slice(i - n // 2, i + n // 2 + 1) for i, n in zip(place, ball.shape, strict=True))
    values: Array = x[cut][ball]
    return values


if __name__ == "__main__":
    sys.exit(main())
