"""DICOM series as volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from n2s_med.errors import InputError, N2SError
from n2s_med.modalities import modality_named
from n2s_med.volumes.contents import Arrays, Refusal, Source, Survey, everywhere, spacing_of
from n2s_med.volumes.dicom_files import read_whole
from n2s_med.volumes.dicom_headers import frames_of
from n2s_med.volumes.dicom_pixels import BoolArray, Storage, real_values, stored_frames
from n2s_med.volumes.dicom_series import Series, build_series
from n2s_med.volumes.frames import Frame
from n2s_med.volumes.suv import acquisition_time, suv_of
from n2s_med.volumes.workers import Room, room, spread

ROWS = 64
"""Rows of an image that are turned at once: what stays in the processor's cache."""

Place = tuple[int, int, Frame]
"""Stack, slice, and the frame that goes there."""


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Refusal]]:
    """Return the series that the DICOM ``files`` form, and one refusal per series and reason."""
    frames: list[Frame] = []
    refusals: list[Refusal] = []
    for found in frames_of(files):
        frames += found.frames
        refusals += found.refusals
    series, refused = build_series(frames)
    return series, [*_merged(refusals), *refused]


def survey_dicom(files: Iterable[Path]) -> Survey:
    """Return the series that the DICOM ``files`` form, their pixels not read yet, and what was refused."""
    series, refusals = find_series(files)
    return Survey(tuple(Source(s.place, s.label, "dicom", partial(load_series, s)) for s in series), tuple(refusals))


def by_file(places: Iterable[Place]) -> dict[Path, list[Place]]:
    """Return ``places`` by the file of their frame, each file's in the order of its frames."""
    grouped: dict[Path, list[Place]] = {}
    for place in places:
        grouped.setdefault(place[2].file.path, []).append(place)
    return {path: sorted(found, key=lambda place: place[2].index) for path, found in grouped.items()}


@dataclass(frozen=True)
class _Rooms:
    """The volume being filled, and where it is padding."""

    values: Room
    padding: Room

    def put(self, c: int, z: int, values: NDArray[np.float32], padding: BoolArray) -> bool:
        """Fill a slice, and say whether any of it is padding."""
        plane = self.values.array[c, :, :, z]
        for rows in range(0, len(values), ROWS):
            plane[:, rows : rows + ROWS] = values[rows : rows + ROWS].T
        padded = bool(padding.any())
        if padded:  # what is not written to takes no memory
            self.padding.array[c, :, :, z] = padding.T
        return padded


@dataclass(frozen=True)
class _Found:
    """What a file holds beside its pixels: whether some are padding, and of PET when it was acquired."""

    padded: bool
    acquisition: datetime | None


def load_series(series: Series) -> Arrays:
    """Return the volume (C, X, Y, Z) of ``series`` in its physical units.

    Raises
    ------
    InputError
        If its pixels are damaged, or all of them are padding.
    """
    places = ((c, z, frame) for c, stack in enumerate(series.stacks) for z, frame in enumerate(stack))
    files = list(by_file(places).items())
    try:
        with (
            room(series.shape, np.float32) as values,
            room(series.shape, np.bool_) as padding,
            spread(partial(_load_file, _Rooms(values, padding)), files) as loaded,
        ):
            found = list(loaded)
    except MemoryError as error:
        raise InputError(
            f"{series.label} do not fit in memory", remedy="use a larger machine", path=series.place
        ) from error
    except InputError:
        raise
    except N2SError as error:  # a worker was killed: the next series is read here
        raise InputError(error.cause, remedy=error.remedy, path=series.place) from error
    valid = ~padding.array if any(file.padded for file in found) else everywhere()
    if not valid.any():
        raise InputError("every pixel is padding", remedy="give a scan with data", path=series.place)
    return Arrays(values.array, series.affine, _meta(series, valid, [file.acquisition for file in found]))


def _load_file(rooms: _Rooms, file: tuple[Path, Sequence[Place]]) -> _Found:
    path, places = file
    ds = read_whole(path)
    storage = Storage.of(ds, path)
    frames = stored_frames(ds, path, [frame.index for _, _, frame in places])
    padded = False
    for (c, z, frame), stored in zip(places, frames, strict=True):
        padded |= rooms.put(c, z, real_values(stored, frame.rescale, path), storage.is_padding(stored))
    return _Found(padded, acquisition_time(ds) if places[0][2].file.modality == "PT" else None)


def _meta(series: Series, valid: BoolArray, acquisitions: Sequence[datetime | None]) -> dict[str, Any]:
    first = series.first
    meta: dict[str, Any] = {
        "format": "dicom",
        "modality": modality_named(first.file.modality).name,
        "units": first.units,
        "spacing_mm": spacing_of(series.affine),
        "valid": valid,
        "source": tuple(str(frame.file.path) for frame in series.frames),
        "source_frames": tuple(frame.index for frame in series.frames),
        "label": series.label,
        "notes": series.notes,
        "vendor": first.file.vendor,
        "third_axis": str(first.axis),
        "component": str(first.component),
        "counts": first.counts,
        "stacks": series.names,
        "durations_s": tuple(stack[0].duration_s for stack in series.stacks),
    }
    if first.file.modality == "PT":
        meta["suv"] = suv_of(read_whole(first.file.path), first.units, acquisitions)
    return meta


def _merged(refusals: Iterable[Refusal]) -> list[Refusal]:
    """Join refusals of files of one folder that share label and reason."""
    joined: dict[tuple[Path, str, str], list[Refusal]] = {}
    for refusal in refusals:
        joined.setdefault((refusal.path.parent, refusal.label, refusal.reason), []).append(refusal)
    return [
        same[0] if len(same) == 1 else Refusal(folder, f"{label}, {len(same)} files", reason)
        for (folder, label, reason), same in joined.items()
    ]
