"""The whole command, DICOM in and DICOM out, on a series as it is and on a long one."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid
from startup import starts

from n2s_med.phantoms import pet_phantom, write_pet_series
from performance.base import Record, Sizes, in_own_process

SERIES = "ct/dicom_philips_ingenuity_phantom_5mm"
"""A CT of the test data."""

PHANTOM = ((128, 128, 32), (4.0, 4.0, 4.0))
"""Voxels and spacing of the series that stands in for it where there are no data."""


def jobs(sizes: Sizes) -> Record:
    """The job on a series as it is and on a long one, and the start-up of the command."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        series = [_series(work / "series") if sizes.series else _phantom(work / "series")]
        if sizes.series:
            series.append(_repeated(series[0], work / "long", sizes.series))
        rows = [_job(source, work / f"{source.name}-out") for source in series]
    commands = [{"name": s.command, "wall_s": s.wall_s, "ratio": s.ratio} for s in starts(sizes.starts, imports=1)]
    return {"rows": rows, "starts": commands, "cores": len(os.sched_getaffinity(0))}


def _job(source: Path, target: Path) -> Record:
    told = in_own_process("stages", source, target)
    first = pydicom.dcmread(next(source.iterdir()), stop_before_pixels=True)
    files = list(source.iterdir())
    return {
        **told,
        "shape": [first.Columns, first.Rows, len(files)],
        "input_bytes": sum(file.stat().st_size for file in files),
        "output_bytes": sum(file.stat().st_size for file in target.parent.rglob("*") if target.name in str(file)),
    }


# -- series ----------------------------------------------------------------------------------------------


def _series(folder: Path) -> Path:
    """A folder with the CT of the data alone, or else with a phantom's PET."""
    if not os.environ.get("N2S_DATA"):
        return _phantom(folder)
    source = Path(os.environ["N2S_DATA"]) / SERIES
    folder.mkdir()
    for file in source.iterdir():
        if file.read_bytes()[128:132] == b"DICM":
            (folder / file.name).symlink_to(file)
    return folder


def _phantom(folder: Path) -> Path:
    shape, spacing_mm = PHANTOM
    write_pet_series(pet_phantom(shape, spacing_mm).activity, folder, spacing_mm=spacing_mm, gain=1.0)
    return folder


def _repeated(source: Path, folder: Path, planes: int) -> Path:
    """A series of so many planes, those of another there and back again, each at a place of its own."""
    slices = sorted((pydicom.dcmread(file) for file in source.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    first, second = (list(ds.ImagePositionPatient) for ds in slices[:2])
    turns = [*slices, *reversed(slices)]
    series = generate_uid()
    folder.mkdir()
    for number in range(planes):
        ds = copy.copy(turns[number % len(turns)])
        ds.ImagePositionPatient = [f"{a + number * (b - a):.4f}" for a, b in zip(first, second, strict=True)]
        ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = generate_uid(), series, number + 1
        ds.file_meta = copy.copy(ds.file_meta)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        if "SliceLocation" in ds:
            del ds.SliceLocation
        ds.save_as(folder / f"{number:04d}.dcm")
    return folder
