"""``make demo``: a noisy PET phantom as DICOM, denoised without its truth, then held against it.

With ``--input`` the same job runs on one's own scan, for which there is no truth: then the report beside the
output is what came of it.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from n2s_med.compute import Compute, set_threads
from n2s_med.errors import N2SError
from n2s_med.jobs.denoise import DenoiseJob, Result
from n2s_med.noise import Poisson
from n2s_med.phantoms import PetPhantom, pet_phantom, write_pet_series
from n2s_med.training import ADAPTATION, TrainingConfig
from n2s_med.volumes import is_nifti_name, read

GAIN_BQML = 250.0
"""Activity concentration of one count: the warm background then holds 20 counts a voxel."""

SECONDS = 90.0
SEED = 2021


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog="make demo", description="Denoise a PET phantom, or your own scan.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything that is made")
    parser.add_argument("--input", type=Path, help="your own scan: a NIfTI file or a DICOM folder")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for training")
    arguments = parser.parse_args(argv)
    set_threads()
    try:
        if arguments.input:
            _own_scan(arguments.input, arguments.out, arguments.seconds)
        else:
            _phantom(arguments.out, arguments.seconds)
    except N2SError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _own_scan(source: Path, out: Path, seconds: float) -> None:
    name = source.name if is_nifti_name(source) else f"{source.resolve().name}_denoised"
    _show(_denoise(source, out / name, replace(ADAPTATION, seconds=seconds)))


def _phantom(out: Path, seconds: float) -> None:
    phantom = pet_phantom()
    noisy = Poisson(GAIN_BQML).sample(phantom.activity, torch.Generator().manual_seed(SEED))
    folder = out / "noisy"
    if folder.exists():
        shutil.rmtree(folder)
    write_pet_series(noisy, folder, spacing_mm=phantom.spacing_mm, gain=GAIN_BQML)
    print(f"A noisy PET phantom with known truth is in {folder} (DICOM). Training on it alone ...", flush=True)
    results = _denoise(folder, out / "alone", TrainingConfig(seconds=seconds), from_scratch=True)
    print("Once more, from the base weights, adapted to it ...", flush=True)
    results += _denoise(folder, out / "adapted", replace(ADAPTATION, seconds=seconds / 3))
    volumes = [read(out / name).volumes[0].as_tensor()[0] for name in ("noisy", "alone", "adapted")]
    print("\n".join(_table(phantom, volumes)))
    _show(results)


def _denoise(source: Path, output: Path, config: TrainingConfig, *, from_scratch: bool = False) -> list[Result]:
    job = DenoiseJob(source, output, from_scratch=from_scratch, config=config, compute=Compute.choose(), overwrite=True)
    return list(job.run(lambda line: print(line, file=sys.stderr, flush=True)))


def _show(results: Sequence[Result]) -> None:
    for result in results:
        for warning in result.warnings:
            print(f"warning: {warning}")
        print(f"denoised  {result.output}")
        print(f"report    {result.report}   (open it in a browser)")


def _table(phantom: PetPhantom, volumes: Sequence[Tensor]) -> list[str]:
    """What the phantom's truth says of the noisy and the denoised volumes."""
    truth, background = phantom.activity, phantom.background
    everything = [truth, *volumes]
    rows = [_row("", ["truth", "noisy", "alone", "adapted"])]
    psnr = [f"{10 * math.log10(float(truth.max() ** 2 / (v - truth).square().mean())):.2f}" for v in volumes]
    rows.append(_row("PSNR, dB", ["", *psnr]))
    for sphere, core in zip(phantom.spheres, phantom.sphere_cores, strict=True):
        contrasts = [f"{float(v[core].mean() / v[background].mean()):.2f}" for v in everything]
        rows.append(_row(f"contrast, {sphere.name} sphere", contrasts))
    noise = [f"{float(v[background].std() / v[background].mean()):.1%}" for v in everything]
    rows.append(_row("background noise", noise))
    bias = [f"{float(v[background].mean() / truth[background].mean() - 1):+.2%}" for v in volumes]
    rows.append(_row("background bias", ["", *bias]))
    return rows


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:28}" + "".join(f"{cell:>10}" for cell in cells)


if __name__ == "__main__":
    main()
