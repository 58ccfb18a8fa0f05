"""DICOM series as volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from n2s_med.errors import InputError, UnsupportedError
from n2s_med.modalities import modality_named
from n2s_med.volumes.contents import Refusal, Source, Survey, everywhere, spacing_of, volume_from
from n2s_med.volumes.dicom_files import is_dicom, read_whole
from n2s_med.volumes.dicom_headers import read_frames
from n2s_med.volumes.dicom_pixels import BoolArray, Storage, real_values, stored_frames
from n2s_med.volumes.dicom_series import Series, build_series
from n2s_med.volumes.frames import Frame
from n2s_med.volumes.suv import acquisition_time, suv_of

Place = tuple[int, int, Frame]
"""Stack, slice, and the frame that goes there."""


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Refusal]]:
    """Return the series that the DICOM ``files`` form, and one refusal per series and reason."""
    frames: list[Frame] = []
    refusals: list[Refusal] = []
    for path in files:
        found = read_frames(path)
        frames += found.frames
        refusals += found.refusals
    series, refused = build_series(frames)
    return series, [*_merged(refusals), *refused]


def survey_dicom(files: Iterable[Path]) -> Survey:
    """Return the series that the DICOM ``files`` form, their pixels not read yet, and what was refused."""
    series, refusals = find_series(files)
    return Survey(tuple(Source(s.place, s.label, partial(load_series, s)) for s in series), tuple(refusals))


def load_series(series: Series) -> MetaTensor:
    """Return the volume (C, X, Y, Z) of ``series`` in its physical units."""
    values, meta = _load(series)
    return volume_from(values, series.affine, meta)


class DicomSeriesReader(ImageReader):  # type: ignore[misc]
    """MONAI reader of one DICOM series, classic or enhanced, given by its folder or by its files.

    ``LoadImage(reader=DicomSeriesReader())(folder)`` gives the volume that :func:`n2s_med.volumes.read`
    gives.
    """

    def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
        """Say whether ``filename`` is a folder, or holds DICOM by its content."""
        return all(Path(name).is_dir() or is_dicom(Path(name)) for name in ensure_tuple(filename))

    def read(self, data: Sequence[Path | str] | Path | str, **_: Any) -> Series:
        """Return the one series at ``data``, without its pixels."""
        names = [Path(name) for name in ensure_tuple(data)]
        files = [file for name in names for file in (sorted(name.rglob("*")) if name.is_dir() else [name])]
        series, refusals = find_series(file for file in files if file.is_file() and is_dicom(file))
        if len(series) == 1:
            return series[0]
        if series:
            raise UnsupportedError(f"{len(series)} series here", remedy="give one of them", path=names[0])
        reason = refusals[0].reason if refusals else "no DICOM images here"
        raise UnsupportedError(reason, remedy="give a CT, MR, PET or NM series", path=names[0])

    def get_data(self, img: Series) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the values (C, X, Y, Z) and the metadata of the series ``img``."""
        values, meta = _load(img)
        return values, {**meta, "affine": img.affine, "original_channel_dim": 0}


def by_file(places: Iterable[Place]) -> dict[Path, list[Place]]:
    """Return ``places`` by the file of their frame, each file's in the order of its frames."""
    grouped: dict[Path, list[Place]] = {}
    for place in places:
        grouped.setdefault(place[2].file.path, []).append(place)
    return {path: sorted(found, key=lambda place: place[2].index) for path, found in grouped.items()}


@dataclass
class _Loading:
    """The volume being filled, frame by frame."""

    values: NDArray[np.float32]
    padding: BoolArray | None = None
    acquisitions: list[datetime | None] = field(default_factory=list)

    def put(self, c: int, z: int, values: NDArray[np.float32], padding: BoolArray) -> None:
        self.values[c, :, :, z] = values.T
        if padding.any():
            if self.padding is None:
                self.padding = np.zeros(self.values.shape, dtype=np.bool_)
            self.padding[c, :, :, z] = padding.T


def _load(series: Series) -> tuple[NDArray[np.float32], dict[str, Any]]:
    try:
        loading = _Loading(np.empty(series.shape, dtype=np.float32))
    except MemoryError as error:
        raise InputError(
            f"{series.label} do not fit in memory", remedy="use a larger machine", path=series.place
        ) from error
    places = ((c, z, frame) for c, stack in enumerate(series.stacks) for z, frame in enumerate(stack))
    for path, found in by_file(places).items():
        _load_file(loading, path, found)
    if loading.padding is not None and loading.padding.all():
        raise InputError("every pixel is padding", remedy="give a scan with data", path=series.place)
    return loading.values, _meta(series, loading)


def _load_file(loading: _Loading, path: Path, places: Sequence[Place]) -> None:
    ds = read_whole(path)
    storage = Storage.of(ds, path)
    frames = stored_frames(ds, path, [frame.index for _, _, frame in places])
    for (c, z, frame), stored in zip(places, frames, strict=True):
        loading.put(c, z, real_values(stored, frame.rescale, path), storage.is_padding(stored))
    if places[0][2].file.modality == "PT":
        loading.acquisitions.append(acquisition_time(ds))


def _meta(series: Series, loading: _Loading) -> dict[str, Any]:
    first = series.first
    meta: dict[str, Any] = {
        "format": "dicom",
        "modality": modality_named(first.file.modality).name,
        "units": first.units,
        "spacing_mm": spacing_of(series.affine),
        "valid": everywhere() if loading.padding is None else torch.from_numpy(~loading.padding),
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
        meta["suv"] = suv_of(read_whole(first.file.path), first.units, loading.acquisitions)
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
