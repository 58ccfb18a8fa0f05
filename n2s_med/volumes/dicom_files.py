"""DICOM files found by their content, and the little of each header that building a series needs.

Only these few values of a file are kept; its header is read again when its pixels are.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from n2s_med.errors import InputError
from n2s_med.volumes.contents import Refusal
from n2s_med.volumes.dicom_refusals import SCAN_CLASSES, why_refused
from n2s_med.volumes.quiet import quiet

DECODER_ERRORS = (
    BytesLengthException,
    ValueError,  # of these also: InvalidDicomError, UnicodeDecodeError
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,  # also RecursionError
    EOFError,
    OSError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)
"""What pydicom and its pixel decoders raise on damaged files, one way or another."""

Vector = tuple[float, ...]

SMALLEST_MM, LARGEST_MM = 1e-6, 1e6
"""Lengths beyond these are errors, not scans."""

_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "InstanceNumber",
    "ImageType", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "ModalityLUTSequence", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "Units",
    "EchoTime", "TemporalPositionIdentifier", "NumberOfTemporalPositions", "DiffusionBValue",
    "DiffusionGradientOrientation", "FrameReferenceTime", "TriggerTime",
]  # fmt: skip
_GE_COMPLEX_PART = 0x0043102F  # GEMS_PARM_01: 0 magnitude, 1 phase, 2 real, 3 imaginary


@dataclass(frozen=True)
class SliceHeader:
    """What building a series needs to know of one file.

    Attributes
    ----------
    position_mm, row_direction, column_direction
        Centre of the first pixel, and the directions in which columns and rows are counted, in LPS.
    spacing_mm
        Distance between rows and between columns, in DICOM's order.
    stack_keys
        What can tell stacks at the same positions apart, by name.
    """

    path: Path
    series_uid: str
    instance_uid: str
    modality: str
    series_number: int | None
    instance_number: int
    rows: int
    columns: int
    position_mm: Vector
    row_direction: Vector
    column_direction: Vector
    spacing_mm: tuple[float, float]
    thickness_mm: float
    frame_of_reference: str
    units: str
    stack_keys: dict[str, Any]
    time_points: int

    @property
    def label(self) -> str:
        """Modality and series number, free of patient data."""
        return label_of(self.modality, self.series_number)


def is_dicom(path: Path) -> bool:
    """Say whether the content of ``path`` looks like DICOM, with or without a preamble."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", remedy="check its permissions", path=path) from error
    return head[128:] == b"DICM" or head[:4] in (b"\x02\0\0\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0")


def read_header(path: Path) -> SliceHeader | Refusal | None:
    """Return the header of the file at ``path``, why it is refused, or ``None`` for a DICOMDIR."""
    try:
        with quiet():
            ds = pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=[*_HEADER_TAGS, _GE_COMPLEX_PART]
            )
            if is_directory(ds):
                return None
            reason = why_refused(ds)
            return Refusal(path, _label(ds), reason) if reason else _parsed(path, ds)
    except DECODER_ERRORS as error:
        return Refusal(path, "DICOM", f"its header is damaged ({type(error).__name__})")


def read_whole(path: Path) -> Dataset:
    """Return the complete data set at ``path``; its transfer syntax is filled in where the file lacks it."""
    try:
        with quiet():
            ds = pydicom.dcmread(path, force=True)
            if "TransferSyntaxUID" not in ds.file_meta:
                implicit, little = ds.original_encoding
                explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
                ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
            return ds
    except FileNotFoundError as error:
        raise InputError("it is no longer there", remedy="restore it and try again", path=path) from error
    except DECODER_ERRORS as error:
        raise InputError(
            f"the DICOM file cannot be read ({type(error).__name__})", remedy="export it again", path=path
        ) from error


def is_directory(ds: Dataset) -> bool:
    """Say whether ``ds`` is a DICOMDIR, which indexes other files."""
    meta = getattr(ds, "file_meta", Dataset())
    return bool(meta.get("MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10")


def label_of(modality: str, series_number: int | None) -> str:
    """Return e.g. ``"PT series 4"``."""
    return f"{modality} series {series_number}" if series_number is not None else f"{modality} series"


def _label(ds: Dataset) -> str:
    modality = str(ds.get("Modality") or "")
    known = modality if len(modality) <= 6 and modality.isalpha() and modality.isupper() else "DICOM"
    return label_of(known, _integer(ds, "SeriesNumber"))


def _parsed(path: Path, ds: Dataset) -> SliceHeader:
    modality = SCAN_CLASSES[ds.SOPClassUID]
    orientation = _numbers(ds, "ImageOrientationPatient", 6)
    between_rows, between_columns = _numbers(ds, "PixelSpacing", 2)
    return SliceHeader(
        path=path,
        series_uid=str(ds.SeriesInstanceUID),
        instance_uid=str(ds.SOPInstanceUID),
        modality=modality,
        series_number=_integer(ds, "SeriesNumber"),
        instance_number=_integer(ds, "InstanceNumber") or 0,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        position_mm=_numbers(ds, "ImagePositionPatient", 3),
        row_direction=orientation[:3],
        column_direction=orientation[3:],
        spacing_mm=(between_rows, between_columns),
        thickness_mm=_thickness(ds),
        frame_of_reference=str(ds.get("FrameOfReferenceUID") or ""),
        units=_units(ds, modality),
        stack_keys=_stack_keys(ds),
        time_points=_integer(ds, "NumberOfTemporalPositions") or 1,
    )


def _numbers(ds: Dataset, keyword: str, count: int) -> Vector:
    numbers = tuple(float(number) for number in ds[keyword].value)
    if len(numbers) != count or not all(abs(number) <= LARGEST_MM for number in numbers):
        raise ValueError(keyword)
    return numbers


def _integer(ds: Dataset, keyword: str) -> int | None:
    value = ds.get(keyword)
    return None if value is None or value == "" else int(value)


def _thickness(ds: Dataset) -> float:
    """Return the size in mm of a lone slice along its normal; 1 where the file does not say."""
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        value = ds.get(keyword)
        if value not in (None, "") and SMALLEST_MM <= float(value) <= LARGEST_MM:
            return float(value)
    return 1.0


def _units(ds: Dataset, modality: str) -> str:
    if modality == "PT":
        return str(ds.get("Units") or "unknown")
    if modality == "CT":
        stated = str(ds.get("RescaleType") or "HU")
        return stated if ds.get("RescaleIntercept") is not None and stated in ("HU", "HU_MOD") else "unknown"
    return "arbitrary"


def _stack_keys(ds: Dataset) -> dict[str, Any]:
    """Return what can tell stacks at the same positions apart (issue R3's list), in that order."""
    gradient: Sequence[float] = ds.get("DiffusionGradientOrientation") or ()
    return {
        "echo time": _number(ds, "EchoTime"),
        "image type": tuple(ds.get("ImageType") or ()),
        "temporal position": _number(ds, "TemporalPositionIdentifier"),
        "diffusion": (_number(ds, "DiffusionBValue"), *(float(g) for g in gradient)),
        "frame reference time": _number(ds, "FrameReferenceTime"),
        "trigger time": _number(ds, "TriggerTime"),
    }


def _number(ds: Dataset, keyword: str) -> float:
    value = ds.get(keyword)
    return float(value) if value not in (None, "") else -math.inf
