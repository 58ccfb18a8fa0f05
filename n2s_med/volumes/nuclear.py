"""Nuclear medicine images: what the frames of one object count, and where they lie.

Each frame has an index in every vector of the object (DICOM PS3.3 C.8.4.8): energy window, detector, angle, time
slot, slice, … The kind of image says which of them becomes the third axis of the volume; the others tell its
volumes apart. Planar images and projections hold the counts themselves, as they were detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from n2s_med.volumes.frames import Axis

NM_CLASS = "1.2.840.10008.5.1.4.1.1.20"

VECTORS = {
    "energy window": "EnergyWindowVector",
    "detector": "DetectorVector",
    "phase": "PhaseVector",
    "rotation": "RotationVector",
    "R-R interval": "RRIntervalVector",
    "time slot": "TimeSlotVector",
    "slice": "SliceVector",
    "angular view": "AngularViewVector",
    "time slice": "TimeSliceVector",
}


@dataclass(frozen=True)
class _Kind:
    """What the third axis of a kind of image counts, and by which vectors."""

    axis: Axis
    along: tuple[str, ...] = ()


KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "STATIC": _Kind(Axis.NONE),
        "WHOLE BODY": _Kind(Axis.NONE),
        "DYNAMIC": _Kind(Axis.TIME, ("phase", "time slice")),
        "GATED": _Kind(Axis.TIME, ("time slot",)),
        "TOMO": _Kind(Axis.ANGLE, ("angular view",)),
        "GATED TOMO": _Kind(Axis.ANGLE, ("angular view",)),
        "RECON TOMO": _Kind(Axis.SPACE, ("slice",)),
        "RECON GATED TOMO": _Kind(Axis.SPACE, ("slice",)),
    }
)
"""Value 3 of Image Type (C.8.4.9.1.1)."""

_EVENTS_STAY_EVENTS = {"UNIF", "NRGY", "LIN"}
"""Corrections that move or select single events; any other one scales the counts."""


@dataclass(frozen=True)
class Place:
    """Where a frame lies in its object.

    Attributes
    ----------
    axis
        What the third axis counts.
    depth
        Place along it, from 0.
    indices
        Index in every vector, by its name.
    keys
        Those of them that are not the third axis.
    """

    axis: Axis
    depth: int
    indices: dict[str, int]
    keys: dict[str, Any]


def why_no_frames(ds: Dataset) -> str | None:
    """Return why the frames of the nuclear medicine object ``ds`` cannot be told, or ``None``."""
    count = int(ds.get("NumberOfFrames") or 1)
    if kind_of(ds) not in KINDS:
        return "its kind of nuclear medicine image (Image Type, value 3) is not known"
    vectors = [_indices(ds, keyword) for keyword in VECTORS.values()]
    if any(len(vector) not in (0, count) for vector in vectors) or (count > 1 and not any(vectors)):
        return "it does not say for each frame what it shows (detector, angle, time, …)"
    return None


def kind_of(ds: Dataset) -> str:
    """Return value 3 of Image Type."""
    values = [str(value).strip().upper() for value in ds.get("ImageType") or ()]
    return values[2] if len(values) > 2 else ""


def places(ds: Dataset) -> Iterator[Place]:
    """Yield where each frame of the object ``ds`` lies in it."""
    kind, count = KINDS[kind_of(ds)], int(ds.get("NumberOfFrames") or 1)
    indices = {name: _indices(ds, keyword) or [1] * count for name, keyword in VECTORS.items()}
    along = list(zip(*(indices[name] for name in kind.along), strict=True)) or [()] * count
    order = {place: depth for depth, place in enumerate(sorted(set(along)))}
    for frame, place in enumerate(along):
        here = {name: vector[frame] for name, vector in indices.items()}
        keys = {name: index for name, index in here.items() if name not in kind.along}
        yield Place(kind.axis, place[0] - 1 if kind.axis is Axis.SPACE else order[place], here, keys)


def located(ds: Dataset, place: Place) -> tuple[Dataset, bool]:
    """Return the flat header of the frame at ``place``, and whether the object says where it lies.

    Slices are stacked along the normal; a negative Spacing Between Slices stacks them against it (C.8.4.15).
    Along angle or time, neighbours are one pixel apart: a distance that is none, but serves as one.
    """
    flat = Dataset()
    flat.update({tag: ds.get_item(tag) for tag in ds.keys()})  # noqa: SIM118
    detector = _first_detector(ds)
    corner, directions = detector.get("ImagePositionPatient"), detector.get("ImageOrientationPatient")
    placed = bool(corner and directions and ds.get("PixelSpacing"))
    flat.PixelSpacing = list(ds.get("PixelSpacing") or (1.0, 1.0))
    flat.ImageOrientationPatient = list(directions or (1, 0, 0, 0, 1, 0))
    normal = np.cross(*np.array(flat.ImageOrientationPatient, dtype=float).reshape(2, 3))
    moved = np.array(corner or (0, 0, 0), dtype=float) + normal * place.depth * _step(flat, place.axis)
    flat.ImagePositionPatient = [float(x) for x in moved]
    flat.SliceThickness = abs(_step(flat, place.axis))
    flat.ActualFrameDuration = _duration(ds, place)
    return flat, placed


def _duration(ds: Dataset, place: Place) -> Any:
    """Return how long the frame was acquired: it stands with its phase or rotation, or with the object."""
    for vector, keyword in (("phase", "PhaseInformationSequence"), ("rotation", "RotationInformationSequence")):
        items, number = ds.get(keyword) or (), place.indices[vector]
        if 1 <= number <= len(items) and place.axis is not Axis.SPACE:
            return items[number - 1].get("ActualFrameDuration")
    return ds.get("ActualFrameDuration")


def holds_counts(ds: Dataset) -> bool:
    """Say whether the values are counts of events, neither reconstructed nor scaled."""
    original = str((ds.get("ImageType") or [""])[0]).strip().upper() == "ORIGINAL"
    corrected = {str(value).strip().upper() for value in _list(ds.get("CorrectedImage"))}
    return original and KINDS[kind_of(ds)].axis is not Axis.SPACE and corrected <= _EVENTS_STAY_EVENTS


def _first_detector(ds: Dataset) -> Dataset:
    """Return the item of the first detector, on whose grid all volumes of the object are."""
    first: Dataset = (ds.get("DetectorInformationSequence") or [Dataset()])[0]
    return first


def _step(flat: Dataset, axis: Axis) -> float:
    if axis is not Axis.SPACE:
        return float(flat.PixelSpacing[0])
    return float(flat.get("SpacingBetweenSlices") or flat.get("SliceThickness") or flat.PixelSpacing[0])


def _indices(ds: Dataset, keyword: str) -> list[int]:
    return [int(index) for index in _list(ds.get(keyword))]


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (int, str)) else list(value)
