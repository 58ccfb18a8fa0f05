"""What reading and writing cost, against the plain libraries: NIfTI's gzip against zlib, DICOM against pydicom alone.

python benchmarks/files.py [--slices 64] [--edge 160]

Processor time, which other work on the machine does not lengthen; the least of several turns.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import torch

from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.volumes import Provenance, read, write

TURNS = 3
SPACING_MM = (4.0, 4.0, 4.0)
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | processor time, s | times faster | bytes, × |")
    print("|---|---|---|---|")
    for cost in costs(arguments.edge, arguments.slices):
        print(f"| {cost.what} | {cost.cpu_s:.2f} | {cost.ratio:.2f} | {cost.bytes_ratio:.2f} |")


if __name__ == "__main__":
    main()
