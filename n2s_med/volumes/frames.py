"""A frame: one plane of pixels, with all that building a volume needs to know of it.

Classic files, enhanced multi-frame files, nuclear medicine and ultrasound all become frames; from there on
nothing asks where a frame came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

Vector = tuple[float, ...]


class Axis(StrEnum):
    """What the third axis of a volume counts."""

    SPACE = "space"
    ANGLE = "angle"
    TIME = "time"
    NONE = "none"


class Component(StrEnum):
    """Which part of a complex signal the values are; CT, PET and counts are magnitudes."""

    MAGNITUDE = "magnitude"
    REAL = "real"
    IMAGINARY = "imaginary"


@dataclass(frozen=True)
class ImageFile:
    """What all frames of one file share.

    Attributes
    ----------
    frames
        How many the file holds, read or not.
    time_points
        How many the series is said to have.
    vendor
        Who made the scanner, of those that are known; else ``"other"``.
    """

    path: Path
    sop_class: str
    study_uid: str
    series_uid: str
    instance_uid: str
    modality: str
    vendor: str
    series_number: int | None
    instance_number: int
    rows: int
    columns: int
    frames: int
    frame_of_reference: str
    time_points: int

    @property
    def label(self) -> str:
        """Modality and series number, free of patient data."""
        return label_of(self.modality, self.series_number)


@dataclass(frozen=True)
class Frame:
    """One plane of pixels.

    Attributes
    ----------
    index
        Its number in its file, from 0.
    position_mm, row_direction, column_direction
        Centre of the first pixel, and the directions in which columns and rows are counted, in LPS.
    spacing_mm
        Distance between rows and between columns, in DICOM's order.
    thickness_mm
        Size along the normal of a volume that has this frame alone.
    rescale
        Slope and intercept from stored to real values.
    rescale_stated
        Whether the file says the slope.
    stack_keys
        What can tell stacks at the same positions apart, by name, the more telling first.
    stack
        Name of the stack of slices that the file says it belongs to.
    duration_s
        How long it was acquired, where the file says so.
    axis
        What the third axis of its volume counts; only in space are positions real ones.
    placed
        Whether the file says where the plane lies and how large its pixels are.
    counts
        Whether the values are counts of events as they were acquired: Poisson with a gain of exactly 1.
    """

    file: ImageFile
    index: int
    position_mm: Vector
    row_direction: Vector
    column_direction: Vector
    spacing_mm: tuple[float, float]
    thickness_mm: float
    units: str
    rescale: tuple[float, float]
    rescale_stated: bool
    stack_keys: Mapping[str, Any]
    stack: str = ""
    component: Component = Component.MAGNITUDE
    duration_s: float | None = None
    axis: Axis = Axis.SPACE
    placed: bool = True
    counts: bool = False

    @property
    def place(self) -> tuple[Path, int]:
        """File and number: no two frames have the same."""
        return self.file.path, self.index

    @property
    def identity(self) -> tuple[str, int]:
        """UID and number: copies of a frame share them."""
        return self.file.instance_uid, self.index


def label_of(modality: str, series_number: int | None) -> str:
    """Return e.g. ``"PT series 4"``."""
    return f"{modality} series {series_number}" if series_number is not None else f"{modality} series"
