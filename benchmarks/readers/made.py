"""Series made of real ones, as real folders are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from readers.truth import dicom_files

MADE = {"one slice missing": 2, "one position twice": 0, "PET, first slice empty": 1, "dynamic PET, 3 frames": 3}
"""What they are, and the number of volumes that each holds; made of the cropped series."""


def make(name: str, data: Path, folder: Path) -> Path:
    """Write the series ``name`` of :data:`MADE` into ``folder``."""
    source = data / "ibsi_sts002_cropped/dicom" / ("PET" if "PET" in name else "MR_T1")
    files = sorted(dicom_files(source), key=lambda file: float(pydicom.dcmread(file).ImagePositionPatient[2]))
    for index, file in enumerate(files):
        if name == "one slice missing" and index == len(files) // 2:
            continue
        copies = {"dynamic PET, 3 frames": 3, "one position twice": 1 + (index == 5)}.get(name, 1)
        for copy in range(copies):
            ds = pydicom.dcmread(file)
            if copy:
                ds.SOPInstanceUID = generate_uid(entropy_srcs=[ds.SOPInstanceUID, str(copy)])
                ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
                ds.PixelData = np.roll(ds.pixel_array, copy).tobytes()
            if copies == 3:
                ds.FrameReferenceTime, ds.InstanceNumber = str(1000 * (copy + 1)), copy * len(files) + index + 1
            if name == "PET, first slice empty" and index == 0:
                ds.PixelData, ds.RescaleSlope = bytes(len(ds.PixelData)), "1"
            ds.save_as(folder / f"{copy}-{index:03d}.dcm")
    return folder
