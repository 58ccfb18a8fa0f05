"""The right answer, from the headers and pixels of each file alone: where each frame lies and which values it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """One frame as its own header has it: values (X, Y) and the affine (4, 3) of its plane to LPS mm."""

    values: Floats
    plane: Floats
    thickness_mm: float

    @property
    def corners(self) -> Floats:
        """The three corners (3, 3) that fix the plane."""
        x, y = self.values.shape
        corners: Floats = (self.plane @ np.array([[0, 0, 1], [x - 1, 0, 1], [0, y - 1, 1]]).T)[:3].T
        return corners


def truths(path: Path) -> list[Truth]:
    """Return every frame of the files at ``path``."""
    return [truth for file in dicom_files(path) for truth in _truths(pydicom.dcmread(file))]


def dicom_files(path: Path) -> list[Path]:
    """Return the DICOM files at ``path``."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.read_bytes()[128:132] == b"DICM"]


def _truths(ds: pydicom.Dataset) -> Iterator[Truth]:
    groups = ds.get("PerFrameFunctionalGroupsSequence")
    pixels = ds.pixel_array.astype(np.float64)
    for index, stored in enumerate(pixels if groups else pixels[None]):
        header = pydicom.Dataset()
        for group in [ds.SharedFunctionalGroupsSequence[0], groups[index]] if groups else ():
            for element in group:
                if element.VR == "SQ" and element.value and not element.tag.is_private:
                    header.update(element.value[0])
        yield _truth(header if groups else ds, stored.T)


def _truth(header: pydicom.Dataset, stored: Floats) -> Truth:
    if header.get("Modality") == "US":  # it has a pixel size, in cm, and no place
        region = header.SequenceOfUltrasoundRegions[0]
        plane = np.diag([10 * region.PhysicalDeltaX, 10 * region.PhysicalDeltaY, 0, 1.0])[:, [0, 1, 3]]
        return Truth(stored, plane, 1.0)
    row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(x) for x in header.PixelSpacing)
    plane = np.column_stack([row * between_columns, column * between_rows, np.array(header.ImagePositionPatient)])
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    return Truth(
        stored * slope + intercept, np.vstack([plane.astype(float), [0, 0, 1]]), float(header.SliceThickness or 1)
    )
