"""The header of a DICOM file as frames: the little of it that building a volume needs.

Only these few values are kept; a header is read again when its pixels are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from n2s_med.volumes.contents import Refusal
from n2s_med.volumes.dicom_files import DECODER_ERRORS, is_directory
from n2s_med.volumes.dicom_refusals import (
    GE_COMPLEX_PART,
    SCAN_CLASSES,
    US_CLASS,
    component_of,
    why_frame_refused,
    why_refused,
)
from n2s_med.volumes.frames import Axis, Component, Frame, ImageFile, Vector, label_of
from n2s_med.volumes.functional_groups import ENHANCED_CLASSES, flat_frames
from n2s_med.volumes.limits import LARGEST_MM, SMALLEST_MM
from n2s_med.volumes.nuclear import NM_CLASS, VECTORS, holds_counts, located, places
from n2s_med.volumes.quiet import quiet
from n2s_med.volumes.workers import spread

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Manufacturer",
    "SeriesNumber", "InstanceNumber", "ImageType", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient",
    "FrameOfReferenceUID", "Units", "EchoTime", "TemporalPositionIdentifier", "NumberOfTemporalPositions",
    "DiffusionBValue", "DiffusionGradientOrientation", "FrameReferenceTime", "TriggerTime",
    "AcquisitionNumber", "ActualFrameDuration", "ComplexImageComponent", "CorrectedImage",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence",
    "DetectorInformationSequence", "PhaseInformationSequence", "RotationInformationSequence",
    "SequenceOfUltrasoundRegions", *VECTORS.values(),
]  # fmt: skip
_VENDORS = {  # word or words of Manufacturer, in capitals: name
    "GE": "GE", "GEMS": "GE", "SIEMENS": "Siemens", "PHILIPS": "Philips", "MARCONI": "Philips", "CTI": "Siemens",
    "TOSHIBA": "Canon", "CANON": "Canon", "UIH": "United Imaging", "UNITED IMAGING": "United Imaging",
    "HITACHI": "Fujifilm", "FUJIFILM": "Fujifilm", "BRUKER": "Bruker", "NEUSOFT": "Neusoft", "MEDISO": "Mediso",
    "SPECTRUM DYNAMICS": "Spectrum Dynamics", "SAMSUNG": "Samsung", "MINDRAY": "Mindray", "ESAOTE": "Esaote",
}  # fmt: skip
_UNITS_OF_CODES = {"Bq/ml": "BQML", "{counts}": "CNTS", "{SUVbw}g/ml": "GML", "g/ml{SUVbw}": "GML"}
"""Units (0054,1001) of PET by the UCUM code of the real-world map."""
_CENTIMETRES = 3
"""Physical Units of an ultrasound region (C.8.5.5.1.15)."""
_TIMED = ("PT", "MR")
"""Modalities whose acquisitions may be time points; those of CT are pieces of one volume."""


@dataclass(frozen=True)
class FileFrames:
    """The frames of one file that are read, and why others are not."""

    frames: tuple[Frame, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class _Flat:
    """The flat header of one frame, and what only its kind of object says of it."""

    ds: Dataset
    axis: Axis = Axis.SPACE
    placed: bool = True
    keys: dict[str, Any] = field(default_factory=dict)
    counts: bool = False


_SEEN: dict[tuple[Path, int, int], FileFrames] = {}
_MOST_SEEN = 4096
"""Files of one frame that were read last: a series is looked through before it is read, and again before it is written.
"""


def read_frames(path: Path) -> FileFrames:
    """Return the frames of the file at ``path``; none, and no refusals, for a DICOMDIR."""
    (found,) = frames_of([path])
    return found


def frames_of(paths: Iterable[Path]) -> list[FileFrames]:
    """Return what :func:`read_frames` does, of each of ``paths``; those not seen before by workers, if there are."""
    keys = [_key(path) for path in paths]
    seen = {key: _SEEN.get(key) for key in keys}  # which another thread may clear
    unseen = [key for key, frames in seen.items() if frames is None]
    with spread(_read_frames, [path for path, *_ in unseen]) as read:
        found = dict(zip(unseen, read, strict=True))
    for key, frames in found.items():
        if len(frames.frames) == 1:
            if len(_SEEN) == _MOST_SEEN:
                _SEEN.clear()
            _SEEN[key] = frames
    return [seen[key] or found[key] for key in keys]


def _key(path: Path) -> tuple[Path, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return path, -1, -1  # reading it tells why
    return path, stat.st_size, stat.st_mtime_ns


def _read_frames(path: Path) -> FileFrames:
    try:
        with quiet():
            ds = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*_TAGS, GE_COMPLEX_PART])
            if is_directory(ds):
                return FileFrames()
            reason = why_refused(ds, path)
            if reason:
                return FileFrames(refusals=(Refusal(path, _label(ds), reason),))
            return _sorted_out(path, _file(path, ds), ds)
    except DECODER_ERRORS as error:
        return FileFrames(refusals=(Refusal(path, "DICOM", f"its header is damaged ({type(error).__name__})"),))


def _label(ds: Dataset) -> str:
    modality = str(ds.get("Modality") or "")
    known = modality if len(modality) <= 6 and modality.isalpha() and modality.isupper() else "DICOM"
    return label_of(known, _integer(ds, "SeriesNumber"))


def _sorted_out(path: Path, file: ImageFile, ds: Dataset) -> FileFrames:
    """Return the frames of ``ds`` that are read, and one refusal for each reason not to."""
    frames, reasons = [], Counter[str]()
    for index, flat in enumerate(_flattened(ds)):
        reason = why_frame_refused(flat.ds)
        if reason:
            reasons[reason] += 1
        else:
            frames.append(_frame(file, index, flat))
    refusals = tuple(Refusal(path, _part(file, count), reason) for reason, count in reasons.items())
    return FileFrames(tuple(frames), refusals)


def _part(file: ImageFile, count: int) -> str:
    return file.label if count == file.frames else f"{file.label}, {count} of {file.frames} frames"


def _flattened(ds: Dataset) -> Iterator[_Flat]:
    if ds.SOPClassUID in ENHANCED_CLASSES:
        yield from (_Flat(flat) for flat in flat_frames(ds))
    elif ds.SOPClassUID == NM_CLASS:
        for place in places(ds):
            flat, placed = located(ds, place)
            yield _Flat(flat, place.axis, placed, place.keys, holds_counts(ds))
    elif ds.SOPClassUID == US_CLASS:
        yield _Flat(*_ultrasound(ds))
    else:
        yield _Flat(ds)


def _ultrasound(ds: Dataset) -> tuple[Dataset, Axis, bool]:
    """Return the flat header of an ultrasound image, which has no place in space, and whether it is to scale."""
    regions = (item for item in ds.get("SequenceOfUltrasoundRegions") or () if item.get("RegionSpatialFormat") == 1)
    region = next(regions, Dataset())
    to_scale = region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == _CENTIMETRES
    if to_scale:
        ds.PixelSpacing = [10 * abs(float(region.PhysicalDeltaY)), 10 * abs(float(region.PhysicalDeltaX))]
    elif not ds.get("PixelSpacing"):
        ds.PixelSpacing = [1.0, 1.0]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0.0] * 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return ds, Axis.NONE, to_scale


def _file(path: Path, ds: Dataset) -> ImageFile:
    return ImageFile(
        path=path,
        sop_class=str(ds.SOPClassUID),
        study_uid=str(ds.get("StudyInstanceUID") or ""),
        series_uid=str(ds.SeriesInstanceUID),
        instance_uid=str(ds.SOPInstanceUID),
        modality=SCAN_CLASSES[ds.SOPClassUID],
        vendor=vendor_named(str(ds.get("Manufacturer") or "")),
        series_number=_integer(ds, "SeriesNumber"),
        instance_number=_integer(ds, "InstanceNumber") or 0,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        frames=int(ds.get("NumberOfFrames") or 1),
        frame_of_reference=str(ds.get("FrameOfReferenceUID") or ""),
        time_points=_integer(ds, "NumberOfTemporalPositions") or 1,
    )


def _frame(file: ImageFile, index: int, flat: _Flat) -> Frame:
    ds = flat.ds
    orientation = _numbers(ds, "ImageOrientationPatient", 6)
    between_rows, between_columns = _numbers(ds, "PixelSpacing", 2)
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    counts = flat.counts and slope is None and intercept is None
    return Frame(
        file=file,
        index=index,
        position_mm=_numbers(ds, "ImagePositionPatient", 3),
        row_direction=orientation[:3],
        column_direction=orientation[3:],
        spacing_mm=(between_rows, between_columns),
        thickness_mm=_thickness(ds),
        units="CNTS" if counts else _units(ds, file.modality),
        rescale=(float(1 if slope is None else slope), float(0 if intercept is None else intercept)),
        rescale_stated=slope is not None,
        stack_keys=flat.keys or _stack_keys(ds, file),
        stack=str(ds.get("StackID") or ""),
        component=component_of(ds) if file.modality == "MR" else Component.MAGNITUDE,
        duration_s=_duration(ds),
        axis=flat.axis,
        placed=flat.placed,
        counts=counts,
    )


def _numbers(ds: Dataset, keyword: str, count: int) -> Vector:
    numbers = tuple(float(number) for number in ds[keyword].value)
    if len(numbers) != count or not all(abs(number) <= LARGEST_MM for number in numbers):
        raise ValueError(keyword)
    return numbers


def _integer(ds: Dataset, keyword: str) -> int | None:
    value = ds.get(keyword)
    return None if value is None or value == "" else int(value)


def vendor_named(manufacturer: str) -> str:
    """Return the vendor that ``manufacturer`` names, of those that are known; else ``"other"``."""
    said = " ".join(re.findall(r"[A-Z]+", manufacturer.upper()))
    return next((name for words, name in _VENDORS.items() if re.search(rf"\b{words}\b", said)), "other")


def _thickness(ds: Dataset) -> float:
    """Return the size in mm of a lone slice along its normal; 1 where the file does not say."""
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        value = ds.get(keyword)
        if value not in (None, "") and SMALLEST_MM <= float(value) <= LARGEST_MM:
            return float(value)
    return 1.0


def _duration(ds: Dataset) -> float | None:
    """Return how long the frame was acquired, in seconds."""
    for keyword in ("FrameAcquisitionDuration", "ActualFrameDuration"):
        milliseconds = _number(ds, keyword)
        if 0 < milliseconds < math.inf:
            return milliseconds / 1000
    return None


def _units(ds: Dataset, modality: str) -> str:
    if modality == "PT":
        return str(ds.get("Units") or _mapped_units(ds) or "unknown")
    if modality == "CT":
        stated = str(ds.get("RescaleType") or "HU")
        return stated if ds.get("RescaleIntercept") is not None and stated in ("HU", "HU_MOD") else "unknown"
    return "arbitrary"


def _mapped_units(ds: Dataset) -> str | None:
    """Return the units that the real-world map of an enhanced PET frame gives, where it is the rescale itself."""
    slope = ds.get("RealWorldValueSlope")
    if slope is None or not math.isclose(slope, float(ds.RescaleSlope), rel_tol=1e-6):
        return None
    code = (ds.get("MeasurementUnitsCodeSequence") or [Dataset()])[0]
    return _UNITS_OF_CODES.get(str(code.get("CodeValue")))


def _stack_keys(ds: Dataset, file: ImageFile) -> dict[str, Any]:
    """Return what can tell stacks at the same positions apart , the more telling first."""
    gradient: Sequence[float] = ds.get("DiffusionGradientOrientation") or ()
    keys = {
        "echo time": _number(ds, "EchoTime"),
        "image type": tuple(ds.get("ImageType") or ()),
        "temporal position": _number(ds, "TemporalPositionIdentifier", "TemporalPositionIndex"),
        "diffusion": (_number(ds, "DiffusionBValue"), *(float(g) for g in gradient)),
        "frame reference time": _number(ds, "FrameReferenceTime"),
        "trigger time": _number(
            ds, "TriggerTime", "NominalCardiacTriggerDelayTime", "NominalRespiratoryTriggerDelayTime"
        ),
        "time offset": _number(ds, "TemporalPositionTimeOffset"),
        "frame time": _moment(ds.get("FrameReferenceDateTime")),
        "dimension": tuple(_indices(ds.get("DimensionIndexValues"))),
    }
    if file.modality in _TIMED:
        keys["acquisition"] = _number(ds, "AcquisitionNumber", "FrameAcquisitionNumber")
    if file.frames > 1:
        keys["instance"] = float(file.instance_number)
    return keys


def _number(ds: Dataset, *keywords: str) -> float:
    """Return the value of the first of ``keywords`` that is there; minus infinity where none is."""
    values = (ds.get(keyword) for keyword in keywords)
    return next((float(value) for value in values if value not in (None, "")), -math.inf)


def _indices(value: Any) -> Sequence[int]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _moment(value: Any) -> float:
    """Return the date-time ``value`` in seconds, from an arbitrary moment."""
    moment = DT(str(value)) if value else None
    return -math.inf if moment is None else moment.replace(tzinfo=None).timestamp()
