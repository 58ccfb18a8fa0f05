"""Denoise real scans by the command line and write what came of it to ``docs/real_scans.md``.

    N2S_DATA=/path/to/data python benchmarks/real_scans.py [--seconds 60] [--threads 1]

For each scan: law and level found, trust checks, clean-free error, shift of mean and maximum, time, memory; that
SimpleITK reads the output on the source's grid; and that ``dciodvfy`` finds nothing in it that it does not find in
the source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from records import grid, write_between_markers

SCANS = {
    "GE PET, 267 slopes": ("pet/dicom_ge_discoveryst_sts001", []),
    "Philips CT phantom, 5 mm": ("ct/dicom_philips_ingenuity_phantom_5mm", []),
    "Siemens MR T2": ("mr/dicom_siemens_avanto_t2_sts001", []),
    "GE MR, sagittal": ("mr/dicom_ge_signa_breast_sagittal", []),
    "CT, NIfTI, 3 mm": ("nifti_small/totalsegmentator/example_ct_sm.nii.gz", ["--modality", "ct"]),
}
TABLE = Path("docs/real_scans.md")
HEAD = (
    "scan",
    "voxels",
    "noise found",
    "checks failed",
    "error left",
    "mean",
    "maximum",
    "train, s",
    "denoise, s",
    "memory, MiB",
    "same grid",
    "dciodvfy",
)


def main() -> None:
    """Run all scans and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="time budget of each scan's adaptation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    data = os.environ.get("N2S_DATA")
    if not data:
        sys.exit("N2S_DATA names no folder of real scans")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name, (path, options) in SCANS.items():
            rows.append(_row(name, Path(data) / path, Path(work), arguments, options))
            print(" | ".join(rows[-1]), flush=True)
    command = f"python benchmarks/real_scans.py --seconds {arguments.seconds:g} --threads {arguments.threads}"
    told = f"""Written by `{command}`: the base weights, adapted to each scan. Error left:
estimated without a clean image, in units of the noise variance. Mean and maximum: shift in per cent. dciodvfy:
errors in the derived files that their sources lack.
"""
    write_between_markers(arguments.out, f"{told}\n{grid(HEAD, rows)}", "scans")


def _row(name: str, source: Path, work: Path, arguments: argparse.Namespace, options: list[str]) -> list[str]:
    out = work / (source.name if source.is_file() else f"{source.name}_out")
    command = [sys.executable, "-m", "n2s_med", "denoise", str(source), str(out), "--quiet", *options]
    command += ["--seconds", str(arguments.seconds), "--threads", str(arguments.threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stem = out.name.removesuffix(".nii.gz")
    report: Mapping[str, Any] = json.loads((work / f"{stem}.report.json").read_text())
    figures, verdicts = report["figures"], report["verdicts"]
    noise = ", ".join(
        f"{key} {value:.4g}"
        for key, value in figures["noise"].items()
        if key in ("sigma", "gain", "power", "dispersion")
    )
    lags = "/".join(f"{lag:.2f}" for lag in figures["noise"]["neighbour_correlation"])
    quantities, resources = figures["quantities"], figures["resources"]
    return [
        name,
        f"{resources['voxels']:,}",
        f"{figures['noise']['law']} ({noise}; neighbours {lags})",
        ", ".join(v["name"] for v in verdicts if not v["passed"]) or "none",
        f"{figures['clean-free figures']['error_after_in_noise_variances']:.3f}",
        f"{quantities.get('mean_shift_percent', 0):+.2f} %",
        f"{quantities.get('maximum_shift_percent', 0):+.2f} %",
        f"{resources['training_time_s']:.0f}",
        f"{resources['denoising_time_s']:.0f}",
        f"{resources['peak_memory_mib']:.0f}",
        "yes" if _same_grid(source, out) else "NO",
        _new_errors(source, out),
    ]


def _read(path: Path) -> sitk.Image:
    if path.is_file():
        return sitk.ReadImage(str(path))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
    return sitk.ReadImage(files)


def _same_grid(source: Path, out: Path) -> bool:
    a, b = _read(source), _read(out)
    return a.GetSize() == b.GetSize() and all(
        np.allclose(x, y, atol=1e-4)
        for x, y in (
            (a.GetOrigin(), b.GetOrigin()),
            (a.GetSpacing(), b.GetSpacing()),
            (a.GetDirection(), b.GetDirection()),
        )
    )


def _new_errors(source: Path, out: Path) -> str:
    """Kinds of error that dciodvfy finds in three derived files and in no source file looked at."""
    if source.is_file():
        return "no DICOM"
    if shutil.which("dciodvfy") is None:
        return "not installed"
    known, found = (_errors(folder) for folder in (source, out))
    return "none" if found <= known else f"{len(found - known)}"


def _errors(folder: Path) -> set[str]:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and "LICENSE" not in path.name)
    lines = []
    for path in (files[0], files[len(files) // 2], files[-1]):
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        lines += [line for line in done.stderr.splitlines() if line.startswith("Error")]
    return {re.sub(r"[\d.]+", "#", line) for line in lines}


if __name__ == "__main__":
    main()
