"""Which DICOM objects and frames are not read, and why: one rule a function, the first that applies speaks.

No reason quotes a value that could hold patient data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from n2s_med.volumes.frames import Component
from n2s_med.volumes.functional_groups import ENHANCED_CLASSES
from n2s_med.volumes.limits import DEFLATE_RATIO
from n2s_med.volumes.nuclear import NM_CLASS, why_no_frames

US_CLASS = "1.2.840.10008.5.1.4.1.1.6.1"

SCAN_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    NM_CLASS: "NM",
    US_CLASS: "US",
    **ENHANCED_CLASSES,
}
"""SOP classes that are read, with their Modality."""

FRAMED_CLASSES = {NM_CLASS, *ENHANCED_CLASSES}
"""Those of them that hold several frames."""

_STORAGE = "1.2.840.10008.5.1.4.1.1"
_KINDS = (  # beginnings of SOP class UIDs, the more specific first
    (f"{_STORAGE}.4.2", "MR spectroscopy is not an image"),
    (f"{_STORAGE}.4.3", "an enhanced MR colour image is not a scan"),
    (f"{_STORAGE}.7", "a secondary capture is a picture of a screen or a summary, not a scan"),
    (f"{_STORAGE}.481", "a radiotherapy object (plan, dose, structures) is not a scan"),
    (f"{_STORAGE}.88", "a report is not a scan"),
    (f"{_STORAGE}.104", "an encapsulated document is not a scan"),
    (f"{_STORAGE}.66", "segmentations, registrations and raw data are not scans"),
    (f"{_STORAGE}.11", "a presentation state is not a scan"),
    (f"{_STORAGE}.9", "a waveform is not a scan"),
    (f"{_STORAGE}.30", "a parametric map is a result, not a scan"),
    (f"{_STORAGE}.6", "volumes of ultrasound are not read yet"),
    (f"{_STORAGE}.3", "ultrasound clips in DICOM are not read yet"),
)
_LOCALIZER = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_PICTURE = {"SCREEN SAVE", "PROJECTION IMAGE", "MIP", "MAX_IP", "MPR THICK RANGE", "PATIENT_INFO"}
_MOSAIC = {"MOSAIC", "VFRAME"}
_NOT_A_SIGNAL = {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY", "VELOCITY MAP", "B0", "FIELD_MAP", "MIXED"}
_REAL = {"R", "REAL", "R_FFE", "R_SE", "R_IR"}
_IMAGINARY = {"I", "IMAGINARY", "I_FFE", "I_SE", "I_IR"}
GE_COMPLEX_PART = 0x0043102F
"""GEMS_PARM_01: 0 magnitude, 1 phase, 2 real, 3 imaginary."""

_SMALLEST_COMPRESSED_FRAME = 8
"""Bytes of the item that holds a compressed frame, at least."""


def why_refused(ds: Dataset, path: Path) -> str | None:
    """Return why the object with the header ``ds``, at ``path``, is not read, or ``None``."""
    reason = _first(_OBJECT_RULES, ds)
    return reason or _frames(ds, path)


def why_frame_refused(flat: Dataset) -> str | None:
    """Return why the frame with the flat header ``flat`` is not read, or ``None``."""
    return _first(_FRAME_RULES, flat)


def component_of(flat: Dataset) -> Component:
    """Return which part of a complex signal the MR frame with the flat header ``flat`` shows."""
    values, ge_part = _type_values(flat), _ge_part(flat)
    if values & _REAL or ge_part == 2:
        return Component.REAL
    if values & _IMAGINARY or ge_part == 3:
        return Component.IMAGINARY
    return Component.MAGNITUDE


def _first(rules: Iterable[Callable[[Dataset], str | None]], ds: Dataset) -> str | None:
    return next((reason for rule in rules if (reason := rule(ds)) is not None), None)


# -- of objects ----------------------------------------------------------------------------------------


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
    return f"{known if known != uid else 'its kind of object'} is not a CT, MR, PET, NM or US image{colour}"


def _colour(ds: Dataset) -> str | None:
    return "colour images are not scans" if _is_colour(ds) else None


def _is_colour(ds: Dataset) -> bool:
    mono = str(ds.get("PhotometricInterpretation", "MONOCHROME2")) in ("MONOCHROME1", "MONOCHROME2")
    return ds.get("SamplesPerPixel", 1) not in (None, 1) or not mono


def _pixels(ds: Dataset) -> str | None:
    if ds.get("BitsAllocated") not in (8, 16) or ds.get("PixelRepresentation") not in (0, 1):
        return "its pixels are not stored as integers of 8 or 16 bits"
    if not 1 <= int(ds.get("BitsStored") or 0) <= ds.BitsAllocated:
        return "Bits Stored is missing or impossible"
    if not ds.get("Rows") or not ds.get("Columns"):
        return "it has no pixels"
    return None


def _instance(ds: Dataset) -> str | None:
    return _missing(ds, (("SeriesInstanceUID", "Series Instance UID"), ("SOPInstanceUID", "SOP Instance UID")))


def _lookup(ds: Dataset) -> str | None:
    return "a lookup table of the modality is not applied yet" if "ModalityLUTSequence" in ds else None


def _groups(ds: Dataset) -> str | None:
    if ds.SOPClassUID == NM_CLASS:
        return why_no_frames(ds)
    if ds.SOPClassUID in ENHANCED_CLASSES and not ds.get("PerFrameFunctionalGroupsSequence"):
        return "it says nothing of its frames (Per-Frame Functional Groups Sequence)"
    return None


_OBJECT_RULES: tuple[Callable[[Dataset], str | None], ...] = (
    _class, _colour, _lookup, _pixels, _instance, _groups,
)  # fmt: skip


def _frames(ds: Dataset, path: Path) -> str | None:
    """Refuse several frames where the class has one, and more frames than the file can hold."""
    count = int(ds.get("NumberOfFrames") or 1)
    if count > 1 and ds.SOPClassUID not in FRAMED_CLASSES:
        return "several frames in an object that should have one"
    syntax = ds.file_meta.get("TransferSyntaxUID") if hasattr(ds, "file_meta") else None
    frame_bytes = ds.Rows * ds.Columns * ds.BitsAllocated // 8
    if syntax is not None and syntax.is_compressed:
        frame_bytes = _SMALLEST_COMPRESSED_FRAME if syntax.is_encapsulated else frame_bytes // DEFLATE_RATIO
    if count < 1 or count * frame_bytes > path.stat().st_size:
        return "its pixels cannot be decoded: the file is too short for them"
    return None


# -- of frames -----------------------------------------------------------------------------------------


def _image_type(flat: Dataset) -> str | None:
    values = _type_values(flat)
    if values & _LOCALIZER:
        return "a localizer is a planning view, not a volume"
    if values & _PICTURE:
        return "a projection or a picture of a screen is not a scan"
    if values & _MOSAIC:
        return "a mosaic holds many slices in one image and must not be filtered as one: convert it to NIfTI"
    return None


def why_no_signal(flat: Dataset) -> str | None:
    """Return why the values of an MR frame are no magnitude, real or imaginary part, or ``None``."""
    if SCAN_CLASSES[flat.SOPClassUID] != "MR":
        return None
    if _type_values(flat) & _NOT_A_SIGNAL or _ge_part(flat) == 1:
        return "phase, velocity and field maps do not follow the noise laws of the signal"
    return None


def _type_values(flat: Dataset) -> set[str]:
    values = {str(value).strip().upper() for value in list(flat.get("ImageType") or ())[2:]}
    return values | {str(flat.get("ComplexImageComponent") or "").strip().upper()}


def _ge_part(flat: Dataset) -> int:
    part = flat.get(GE_COMPLEX_PART)
    return part.value if part is not None and isinstance(part.value, int) else 0


def _rescale(flat: Dataset) -> str | None:
    if SCAN_CLASSES[flat.SOPClassUID] == "PT" and flat.get("RescaleSlope") is None:
        return "PET without Rescale Slope: its activity cannot be known"
    slope, intercept = flat.get("RescaleSlope"), flat.get("RescaleIntercept")
    numbers = float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    if not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        return "its Rescale Slope is zero or not a number"
    return None


def _geometry(flat: Dataset) -> str | None:
    return _missing(
        flat,
        (
            ("ImagePositionPatient", "Image Position (Patient)"),
            ("ImageOrientationPatient", "Image Orientation (Patient)"),
            ("PixelSpacing", "Pixel Spacing"),
        ),
    )


def _missing(ds: Dataset, wanted: Iterable[tuple[str, str]]) -> str | None:
    return next((f"{name} is missing" for keyword, name in wanted if not ds.get(keyword)), None)


_FRAME_RULES: tuple[Callable[[Dataset], str | None], ...] = (_image_type, why_no_signal, _rescale, _geometry)
