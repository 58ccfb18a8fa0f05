"""What a file says by a plain reading: each frame's pixels by pydicom, its rescale and its place, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from monai.data import MetaTensor
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from n2s_med.volumes.quiet import quiet

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MACROS = (
    "PixelValueTransformationSequence",
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
)
"""Functional groups that say what is checked here."""
NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"


def check_as_the_file_says(volume: MetaTensor, path: Path) -> None:
    """Assert that ``volume``, read from the lone file at ``path``, has the values and the places that it states."""
    with quiet(), np.errstate(all="ignore"):
        if volume.meta["format"] == "nifti":
            _check_nifti(volume, path)
        else:
            _check_dicom(volume, path)


def _check_nifti(volume: MetaTensor, path: Path) -> None:
    image = nib.load(path)
    values = np.atleast_3d(np.asarray(image.dataobj, dtype=np.float32))
    values = values.reshape(*values.shape[:3], -1)
    np.testing.assert_array_equal(volume.numpy(), np.moveaxis(values, 3, 0))


def _check_dicom(volume: MetaTensor, path: Path) -> None:
    ds = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    pixels = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns).astype(np.float64)
    headers = list(_headers(ds))
    frames = iter(volume.meta["source_frames"])
    affine = LPS @ volume.affine.numpy()
    for c, z in np.ndindex(volume.shape[0], volume.shape[3]):
        frame = next(frames)
        header = headers[frame]
        slope, intercept = (_one(header, name, x) for name, x in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
        said = (pixels[frame].T * slope + intercept).astype(np.float32)
        np.testing.assert_array_equal(volume[c, :, :, z].numpy(), said)
        if ds.SOPClassUID != NUCLEAR:  # whose frames state no place of their own
            _check_place(affine, z, header)
    assert next(frames, None) is None


def _check_place(affine: np.ndarray, z: int, header: Dataset) -> None:
    """A slice may lie off its even grid by a tenth of the step; its directions and pixel sizes are those stated."""
    row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(x) for x in header.PixelSpacing)
    place = np.array(header.ImagePositionPatient, dtype=float)
    step = np.linalg.norm(affine[:3, 2])
    assert np.linalg.norm((affine @ [0, 0, z, 1])[:3] - place) <= 0.1 * step + 1e-6 * np.abs(place).max()
    np.testing.assert_allclose(affine[:3, 0], row * between_columns, atol=2e-3 * between_columns)
    np.testing.assert_allclose(affine[:3, 1], column * between_rows, atol=2e-3 * between_rows)


def _headers(ds: Dataset) -> Iterator[Dataset]:
    """The header of each frame: of an enhanced file, the shared groups, overruled by its own."""
    if "PerFrameFunctionalGroupsSequence" not in ds:
        yield from [ds] * int(ds.get("NumberOfFrames") or 1)
        return
    shared = ds.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for own in ds.PerFrameFunctionalGroupsSequence:
        header = Dataset()
        for groups, macro in itertools.product((shared[0], own), MACROS):
            header.update((groups.get(macro) or [{}])[0])
        yield header


def _one(header: Dataset, keyword: str, default: float) -> float:
    value = header.get(keyword)
    return float(default if value is None else value)
