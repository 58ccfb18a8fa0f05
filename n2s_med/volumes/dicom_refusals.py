"""Which DICOM objects are not read, and why: one rule a function, the first that applies speaks.

No reason quotes a value that could hold patient data.
"""

from __future__ import annotations

from collections.abc import Callable

from pydicom.dataset import Dataset
from pydicom.uid import UID

SCAN_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
}
"""SOP classes that are read, with their Modality: classic single-frame CT, MR and PET images."""

_STORAGE = "1.2.840.10008.5.1.4.1.1"
_KINDS = (  # beginnings of SOP class UIDs, the more specific first
    (f"{_STORAGE}.2.1", "enhanced multi-frame CT is not read yet"),
    (f"{_STORAGE}.2.2", "legacy converted enhanced multi-frame CT is not read yet"),
    (f"{_STORAGE}.4.1", "enhanced multi-frame MR is not read yet"),
    (f"{_STORAGE}.4.2", "MR spectroscopy is not an image"),
    (f"{_STORAGE}.4.3", "an enhanced MR colour image is not a scan"),
    (f"{_STORAGE}.4.4", "legacy converted enhanced multi-frame MR is not read yet"),
    (f"{_STORAGE}.128.1", "legacy converted enhanced multi-frame PET is not read yet"),
    (f"{_STORAGE}.130", "enhanced multi-frame PET is not read yet"),
    (f"{_STORAGE}.7", "a secondary capture is a picture of a screen or a summary, not a scan"),
    (f"{_STORAGE}.481", "a radiotherapy object (plan, dose, structures) is not a scan"),
    (f"{_STORAGE}.88", "a report is not a scan"),
    (f"{_STORAGE}.104", "an encapsulated document is not a scan"),
    (f"{_STORAGE}.66", "segmentations, registrations and raw data are not scans"),
    (f"{_STORAGE}.11", "a presentation state is not a scan"),
    (f"{_STORAGE}.9", "a waveform is not a scan"),
    (f"{_STORAGE}.30", "a parametric map is a result, not a scan"),
    (f"{_STORAGE}.20", "nuclear medicine images are not read yet"),
    (f"{_STORAGE}.6", "ultrasound images in DICOM are not read yet"),
    (f"{_STORAGE}.3", "ultrasound clips in DICOM are not read yet"),
)
_LOCALIZER = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_PICTURE = {"SCREEN SAVE", "PROJECTION IMAGE", "MIP", "MAX_IP", "MPR THICK RANGE", "PATIENT_INFO"}
_MOSAIC = {"MOSAIC", "VFRAME"}
_NOT_MAGNITUDE = {
    "P", "PHASE", "PHASE MAP", "PHASE_MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY", "VELOCITY MAP",
    "R_FFE", "I_FFE", "R_SE", "I_SE", "R_IR", "I_IR", "B0", "FIELD_MAP",
}  # fmt: skip
_GE_COMPLEX_PART = (0x0043, 0x102F)


def why_refused(ds: Dataset) -> str | None:
    """Return why the object with the header ``ds`` is not read, or ``None`` for a sound slice of a scan."""
    return next((reason for rule in _RULES if (reason := rule(ds)) is not None), None)


def _class(ds: Dataset) -> str | None:
    uid = ds.get("SOPClassUID")
    if uid is None:
        return "it does not say which kind of object it is (SOP Class UID)"
    if uid in SCAN_CLASSES:
        return None
    colour = "; it is also in colour" if _is_colour(ds) else ""
    for beginning, reason in _KINDS:
        if uid == beginning or uid.startswith(f"{beginning}."):
            return reason + colour
    known = UID(uid).name
    return f"{known if known != uid else 'its kind of object'} is not a CT, MR or PET image{colour}"


def _colour(ds: Dataset) -> str | None:
    return "colour images are not scans" if _is_colour(ds) else None


def _is_colour(ds: Dataset) -> bool:
    mono = str(ds.get("PhotometricInterpretation", "MONOCHROME2")) in ("MONOCHROME1", "MONOCHROME2")
    return ds.get("SamplesPerPixel", 1) not in (None, 1) or not mono


def _frames(ds: Dataset) -> str | None:
    return "several frames in one object are not read yet" if int(ds.get("NumberOfFrames") or 1) > 1 else None


def _image_type(ds: Dataset) -> str | None:
    values = {str(value).strip().upper() for value in list(ds.get("ImageType") or ())[2:]}
    if values & _LOCALIZER:
        return "a localizer is a planning view, not a volume"
    if values & _PICTURE:
        return "a projection or a picture of a screen is not a scan"
    if values & _MOSAIC:
        return "a mosaic of many slices in one image is not read yet"
    return None


def _complex_part(ds: Dataset) -> str | None:
    if SCAN_CLASSES[ds.SOPClassUID] != "MR":
        return None
    values = {str(value).strip().upper() for value in list(ds.get("ImageType") or ())[2:]}
    part = ds.get(_GE_COMPLEX_PART)
    ge_part = part.value if part is not None else 0
    if values & _NOT_MAGNITUDE or (isinstance(ge_part, int) and ge_part in (1, 2, 3)):
        return "phase, real, imaginary and field maps do not follow the noise laws of magnitude images"
    return None


def _pixels(ds: Dataset) -> str | None:
    if ds.get("BitsAllocated") not in (8, 16) or ds.get("PixelRepresentation") not in (0, 1):
        return "its pixels are not stored as integers of 8 or 16 bits"
    if not 1 <= int(ds.get("BitsStored") or 0) <= ds.BitsAllocated:
        return "Bits Stored is missing or impossible"
    if not ds.get("Rows") or not ds.get("Columns"):
        return "it has no pixels"
    return None


def _rescale(ds: Dataset) -> str | None:
    if "ModalityLUTSequence" in ds:
        return "a lookup table of the modality is not applied yet"
    if SCAN_CLASSES[ds.SOPClassUID] == "PT" and ds.get("RescaleSlope") is None:
        return "PET without Rescale Slope: its activity cannot be known"
    return None


def _geometry(ds: Dataset) -> str | None:
    for keyword, name in (
        ("SeriesInstanceUID", "Series Instance UID"),
        ("SOPInstanceUID", "SOP Instance UID"),
        ("ImagePositionPatient", "Image Position (Patient)"),
        ("ImageOrientationPatient", "Image Orientation (Patient)"),
        ("PixelSpacing", "Pixel Spacing"),
    ):
        if not ds.get(keyword):
            return f"{name} is missing"
    return None


_RULES: tuple[Callable[[Dataset], str | None], ...] = (
    _class, _frames, _colour, _image_type, _complex_part, _pixels, _rescale, _geometry,
)  # fmt: skip
