"""DICOM series as volumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from n2s_med.errors import InputError, UnsupportedError
from n2s_med.modalities import modality_named
from n2s_med.volumes.contents import Contents, Refusal, everywhere, spacing_of, volume_from
from n2s_med.volumes.dicom_files import SliceHeader, is_dicom, read_header, read_whole
from n2s_med.volumes.dicom_pixels import BoolArray, padding_of, real_values, rescale_of, stored_pixels
from n2s_med.volumes.dicom_series import Series, build_series
from n2s_med.volumes.suv import acquisition_time, suv_of


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Refusal]]:
    """Return the series that the DICOM ``files`` form, and one refusal per series and reason."""
    headers, refusals = [], []
    for path in files:
        header = read_header(path)
        if isinstance(header, SliceHeader):
            headers.append(header)
        elif header is not None:
            refusals.append(header)
    series, refused = build_series(headers)
    return series, [*_merged(refusals), *refused]


def load_series(series: Series) -> MetaTensor:
    """Return the volume (C, X, Y, Z) of ``series`` in its physical units."""
    values, meta = _load(series)
    return volume_from(values, series.affine, meta)


class DicomSeriesReader(ImageReader):  # type: ignore[misc]
    """MONAI reader of one classic single-frame CT, MR or PET series, given by its folder or by its files.

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
        raise UnsupportedError(reason, remedy="give a CT, MR or PET series", path=names[0])

    def get_data(self, img: Series) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the values (C, X, Y, Z) and the metadata of the series ``img``."""
        values, meta = _load(img)
        return values, {**meta, "affine": img.affine, "original_channel_dim": 0}


def read_dicom(files: Iterable[Path]) -> Contents:
    """Return the volumes of all series that ``files`` form; one that cannot be decoded is refused alone."""
    found, refusals = find_series(files)
    volumes = []
    for series in found:
        try:
            volumes.append(load_series(series))
        except InputError as error:
            refusals.append(Refusal(Path(error.path or series.first.path), series.label, error.cause))
    return Contents(tuple(volumes), tuple(refusals))


@dataclass
class _Loading:
    """The volume being filled, slice by slice."""

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
            f"{series.label} do not fit in memory", remedy="use a larger machine", path=series.first.path
        ) from error
    for c, stack in enumerate(series.stacks):
        for z, header in enumerate(stack):
            _load_slice(loading, c, z, header)
    if loading.padding is not None and loading.padding.all():
        raise InputError("every pixel is padding", remedy="give a scan with data", path=series.first.path)
    return loading.values, _meta(series, loading)


def _load_slice(loading: _Loading, c: int, z: int, header: SliceHeader) -> None:
    ds = read_whole(header.path)
    stored = stored_pixels(ds, header.path)
    values = real_values(stored, rescale_of(ds, header.path), header.path)
    loading.put(c, z, values, padding_of(ds, stored))
    if header.modality == "PT":
        loading.acquisitions.append(acquisition_time(ds))


def _meta(series: Series, loading: _Loading) -> dict[str, Any]:
    first = series.first
    meta: dict[str, Any] = {
        "format": "dicom",
        "modality": modality_named(first.modality).name,
        "units": first.units,
        "spacing_mm": spacing_of(series.affine),
        "valid": everywhere() if loading.padding is None else torch.from_numpy(~loading.padding),
        "source": tuple(str(path) for path in series.files),
        "label": series.label,
    }
    if first.modality == "PT":
        meta["suv"] = suv_of(read_whole(first.path), loading.acquisitions)
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
