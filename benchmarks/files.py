"""What reading and writing cost: against the plain libraries, and of a whole job by the transfer syntax of a real CT.

    [N2S_DATA=/path/to/data] python benchmarks/files.py [--slices 64] [--edge 160] [--out docs/dicom.md]

Processor time, which other work on the machine does not lengthen; the least of several turns. The tables go between
the markers of ``--out``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom import uid
from records import grid, write_between_markers

from n2s_med.compute import Compute
from n2s_med.denoise import DenoiseOptions, Denoiser
from n2s_med.jobs.noise import NoiseRequest
from n2s_med.jobs.scans import scans_of
from n2s_med.modalities import modality_named
from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.score import base_model
from n2s_med.volumes import Provenance, read, write

TURNS = 3
SPACING_MM = (4.0, 4.0, 4.0)
CT = "ct/dicom_philips_ingenuity_phantom_5mm"
SYNTAXES = {
    "native": None,
    "RLE": uid.RLELossless,
    "JPEG-LS, lossless": uid.JPEGLSLossless,
    "JPEG 2000, lossless": uid.JPEG2000Lossless,
}
"""Transfer syntaxes by which a CT is stored."""
PROVENANCE = Provenance("none", "none", "gaussian", {"sigma": 1.0}, "0")


@dataclass(frozen=True)
class Cost:
    """One way of reading or writing.

    Attributes
    ----------
    what
        What was done, and what it is held against.
    cpu_s
        Processor time of ours.
    ratio
        That of the other way over ours: above one, ours is faster.
    bytes_ratio
        Bytes that ours writes over those of the other way.
    """

    what: str
    cpu_s: float
    ratio: float
    bytes_ratio: float


def costs(edge: int = 160, slices: int = 64) -> Iterator[Cost]:
    """Measure a cube of ``edge`` voxels as NIfTI, and a series of ``slices`` slices of 128² as DICOM."""
    with tempfile.TemporaryDirectory() as folder:
        yield _packed(edge, Path(folder))
        yield from _series(slices, Path(folder))


def _packed(edge: int, folder: Path) -> Cost:
    """``.nii.gz`` of a smooth float32 volume with a little noise left, as denoised ones are, against zlib's level 6."""
    import nibabel as nib

    wave = np.sin(np.linspace(0, 6, edge))
    smooth = 1000 * (wave[:, None, None] + wave[:, None] + wave)
    values = (smooth + np.random.default_rng(0).normal(0, 0.5, smooth.shape)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), folder / "in.nii")
    (volume,) = read(folder / "in.nii").volumes
    ours, other = folder / "ours.nii.gz", folder / "zlib.nii.gz"

    def zlib() -> None:
        with gzip.GzipFile(other, "wb", compresslevel=6, mtime=0) as file:
            file.write(values.tobytes())

    def save() -> None:
        write(volume, ours, provenance=PROVENANCE, overwrite=True)

    mine, theirs = _least(save), _least(zlib)
    return Cost("write .nii.gz, × zlib", mine, theirs / mine, ours.stat().st_size / other.stat().st_size)


def _series(slices: int, folder: Path) -> Iterator[Cost]:
    """A PET series read and written, against the same files read and written by pydicom with nothing checked."""
    source, ours, other = (folder / name for name in ("series", "ours", "other"))
    activity = pet_phantom((128, 128, slices), SPACING_MM).activity
    write_pet_series(activity, source, spacing_mm=SPACING_MM, gain=1.0)
    files = sorted(source.iterdir())
    (volume,) = read(source).volumes
    other.mkdir()

    def plain_read() -> None:
        for file in files:
            ds = pydicom.dcmread(file)
            ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)

    def plain_write() -> None:
        for file in files:
            pydicom.dcmread(file).save_as(other / file.name, enforce_file_format=True)

    def ours_write() -> None:
        write(volume, ours, provenance=PROVENANCE, overwrite=True)

    mine, theirs = _least(lambda: read(source)), _least(plain_read)
    yield Cost(f"read {slices} DICOM slices, × pydicom", mine, theirs / mine, 1.0)
    mine, theirs = _least(ours_write), _least(plain_write)
    sizes = [sum(file.stat().st_size for file in place.iterdir()) for place in (ours, other)]
    yield Cost(f"write {slices} DICOM slices, × pydicom", mine, theirs / mine, sizes[0] / sizes[1])


def syntaxes(data: Path) -> str:
    """A real CT in several transfer syntaxes: what reading it costs, a slice, and of the whole job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {kind: _stored(data / CT, folder / f"{number}", kind) for number, kind in enumerate(SYNTAXES)}
        (volume,) = read(places["native"]).volumes
        slices = volume.shape[-1]
        reading = {kind: _least(partial(read, place)) / slices for kind, place in places.items()}
        writing = _least(partial(write, volume, folder / "out", provenance=PROVENANCE, overwrite=True)) / slices
    (scan,) = scans_of(volume, modality_named("ct"), NoiseRequest("gaussian", {"sigma": 10.0}, "white"))
    compute, options = Compute.choose("cpu"), DenoiseOptions(orientations=1)
    denoiser = Denoiser(base_model(3).centred(scan.unit(0).centre), scan.choice.noise, compute, options)
    begun = time.process_time()
    denoiser(scan.y, scan.valid, lambda *_: None)
    denoising = (time.process_time() - begun) / slices
    rows = [
        (kind, f"{1000 * cost:.1f}", f"{100 * cost / (cost + denoising + writing):.1f} %")
        for kind, cost in reading.items()
    ]
    said = (
        f"{slices} slices of {volume.shape[1]}x{volume.shape[2]}; denoising a slice with the base weights as they are"
        f" takes {1000 * denoising:.0f} ms of one core, writing it {1000 * writing:.1f} ms."
    )
    return f"{said}\n\n{grid(('transfer syntax', 'reading a slice, ms', 'of the whole job'), rows)}"


def _stored(source: Path, folder: Path, kind: str) -> Path:
    """Store a series anew."""
    folder.mkdir()
    for file in sorted(source.iterdir()):
        ds = pydicom.dcmread(file)
        if (syntax := SYNTAXES[kind]) is not None:
            ds.compress(syntax)
        ds.save_as(folder / file.name)
    return folder


def _least(work: Callable[[], object]) -> float:
    """The least processor time of a few turns, in seconds."""
    taken = []
    for _ in range(TURNS):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edge", type=int, default=160)
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/dicom.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        (cost.what, f"{cost.ratio:.2f}", f"{cost.bytes_ratio:.2f}") for cost in costs(arguments.edge, arguments.slices)
    ]
    tables = [grid(("what", "times faster", "bytes, ×"), rows)]
    if os.environ.get("N2S_DATA"):
        tables.append(syntaxes(Path(os.environ["N2S_DATA"])))
    print("\n\n".join(tables))
    write_between_markers(arguments.out, "\n\n".join(tables), "files")


if __name__ == "__main__":
    main()
