"""A denoised volume as a derived DICOM series: one new image for each source image, on the same grid.

Quantisation: CT and MR keep the scale of the source, so values outside its stored range are clipped; PET
gets a slope of its own for every slice, that of its largest value. The rounding error is at most half a
stored step. Padding is written as it was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.data import ImageWriter, MetaTensor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from n2s_med.atomic import whole
from n2s_med.errors import InputError, OutputError
from n2s_med.volumes.contents import array_of
from n2s_med.volumes.dicom_derive import Derivation, derive
from n2s_med.volumes.dicom_files import (
    DECODER_ERRORS,
    SliceHeader,
    is_dicom,
    read_header,
    read_whole,
)
from n2s_med.volumes.dicom_pixels import (
    StoredArray,
    padding_of,
    padding_range,
    rescale_of,
    stored_pixels,
    stored_range,
)
from n2s_med.volumes.dicom_series import affine_of
from n2s_med.volumes.provenance import Provenance
from n2s_med.volumes.quiet import quiet

_HEADER_BYTES = 8192

SMALLEST_SLOPE = 1e-30
"""A PET slice whose slope would be smaller is empty."""


def write_series(volume: MetaTensor, folder: Path, *, provenance: Provenance, overwrite: bool = False) -> Path:
    """Write ``volume`` (C, X, Y, Z) into ``folder`` as a series derived from the one it was read from.

    Raises
    ------
    OutputError
        ``folder`` exists or cannot be written, or the volume is no longer on its source's grid.
    """
    headers = source_headers(volume)
    _check_target(folder, headers, overwrite)
    derivation = Derivation(
        provenance,
        provenance.uid("series", headers[0].series_uid, headers[0].instance_uid),
        datetime.now().astimezone(),
    )
    values = array_of(volume)
    signed = bool((values < 0).any())
    needed = len(headers) * (headers[0].rows * headers[0].columns * 2 + _HEADER_BYTES)
    with whole(folder, overwrite=overwrite, needed_bytes=needed) as partial:
        partial.mkdir()
        for index, header in enumerate(headers):
            c, z = divmod(index, values.shape[3])
            ds = _derived(header, values[c, :, :, z].T, derivation, signed=signed)
            _save(ds, partial / f"{index + 1:05d}.dcm", header.path)
    return folder


class DicomSeriesWriter(ImageWriter):  # type: ignore[misc]
    """MONAI writer of a derived DICOM series; the name it is given becomes a folder.

    It needs the ``provenance`` as an option of :meth:`write`:
    ``SaveImage(writer=DicomSeriesWriter, output_ext="").set_options(write_kwargs={"provenance": …})``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._data: Any = None
        self._meta: dict[str, Any] = {}

    def set_data_array(self, data_array: Any, **_: Any) -> None:
        """Take the values (C, X, Y, Z)."""
        self._data = torch.as_tensor(array_of(data_array))

    def set_metadata(self, meta_dict: Any, **_: Any) -> None:
        """Take the metadata of the volume, which names its source files."""
        self._meta = dict(meta_dict or {})

    def write(self, filename: Path | str, verbose: bool = True, **options: Any) -> None:
        """Write the series into the folder ``filename``; ``overwrite`` and ``provenance`` are options."""
        super().write(filename, verbose=verbose)
        if self._data is None or "provenance" not in options:
            raise OutputError("there is no volume or no provenance to write", remedy="set both first")
        meta = {key: value for key, value in self._meta.items() if key != "affine"}
        volume = MetaTensor(self._data, affine=self._meta.get("affine"), meta=meta)
        write_series(
            volume,
            Path(filename),
            provenance=options["provenance"],
            overwrite=bool(options.get("overwrite")),
        )


def source_headers(volume: MetaTensor) -> list[SliceHeader]:
    """Return the headers of the source slices of ``volume``, in its order; it must still be on their grid."""
    headers = []
    for name in volume.meta.get("source", ()):
        if not Path(name).is_file():
            raise InputError("the source file is gone", remedy="restore it and try again", path=name)
        header = read_header(Path(name))
        if not isinstance(header, SliceHeader):
            raise InputError("the source file has changed", remedy="read it again", path=name)
        headers.append(header)
    _check_grid(volume, headers)
    return headers


def _check_grid(volume: MetaTensor, headers: Sequence[SliceHeader]) -> None:
    slices = volume.shape[-1]
    same = (
        volume.ndim == 4
        and len(headers) == volume.shape[0] * slices > 0
        and all((h.columns, h.rows) == tuple(volume.shape[1:3]) for h in headers)
        and np.allclose(affine_of(headers[:slices]), np.asarray(volume.affine), atol=1e-3)
    )
    if not same:
        raise OutputError(
            "the volume is no longer on the grid of its source",
            remedy="write it as NIfTI, or undo the resampling",
        )


def _check_target(folder: Path, headers: Sequence[SliceHeader], overwrite: bool) -> None:
    """Refuse to replace the source, or anything but a folder of DICOM files."""
    if not overwrite or not folder.exists():
        return
    target = folder.resolve()
    if any(target in header.path.resolve().parents for header in headers):
        raise OutputError("it contains the source", remedy="choose another folder", path=folder)
    if not folder.is_dir() or any(not entry.is_file() or not is_dicom(entry) for entry in folder.iterdir()):
        raise OutputError(
            "it is not a folder of DICOM files only, so it is not replaced",
            remedy="choose another folder or remove it yourself",
            path=folder,
        )


def _derived(header: SliceHeader, values: NDArray[np.float32], derivation: Derivation, *, signed: bool) -> Dataset:
    """Return the derived data set of one slice with ``values`` (rows, columns) in physical units."""
    ds = read_whole(header.path)
    source = stored_pixels(ds, header.path)
    rescale = rescale_of(ds, header.path)
    padding = padding_of(ds, source)
    if not np.isfinite(values[~padding]).all():
        raise OutputError("the volume holds NaN or infinite values", remedy="check the model")
    try:
        with quiet():
            derive(ds, derivation)
            if header.modality == "PT":
                rescale = _own_slope(ds, values, padding, rescale[0], signed=signed)
            stored = _quantised(ds, values, rescale)
            stored[padding] = source[padding]
            _set_pixels(ds, stored)
    except DECODER_ERRORS as error:
        raise InputError(
            f"its header cannot be copied ({type(error).__name__})",
            remedy="export it again",
            path=header.path,
        ) from error
    return ds


def _own_slope(
    ds: Dataset, values: NDArray[np.float32], padding: NDArray[np.bool_], source: float, *, signed: bool
) -> tuple[float, float]:
    """Give the PET slice ``ds`` 16 bits, intercept 0 and a slope of its own; return slope and intercept.

    It is the slope of the slice's largest value, rounded to the 16 characters that are written before
    anything is divided by it; the source's slope stays where it serves to within one bit, so that what was
    not changed is stored as it was.
    """
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    if signed and padding_range(ds) is None:
        ds.PixelRepresentation = 1
    low, high = stored_range(ds)
    data = values[~padding]
    peak = max(float(data.max(initial=0.0)) / high, float(data.min(initial=0.0)) / low if low else 0.0)
    ds.RescaleIntercept = "0"
    if not peak <= source * (1 + 1e-6) <= 2 * peak and peak > SMALLEST_SLOPE:
        ds.RescaleSlope = format_number_as_ds(peak)
        if "RealWorldValueMappingSequence" in ds:
            del ds.RealWorldValueMappingSequence  # it maps values as they were stored
    return float(ds.RescaleSlope), 0.0


def _quantised(ds: Dataset, values: NDArray[np.float32], rescale: tuple[float, float]) -> StoredArray:
    """Return the stored values nearest to ``values``, within the stored range and never padding's."""
    slope, intercept = rescale
    low, high = stored_range(ds)
    with np.errstate(invalid="ignore"):
        stored = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), low, high)
    bounds = padding_range(ds)
    if bounds is not None:
        inside = (stored >= bounds[0]) & (stored <= bounds[1])
        stored[inside] = bounds[1] + 1 if bounds[1] < high else bounds[0] - 1
    kind = np.dtype(f"{'i' if ds.PixelRepresentation == 1 else 'u'}{ds.BitsAllocated // 8}")
    result: StoredArray = np.nan_to_num(stored).astype(kind)
    return result


def _set_pixels(ds: Dataset, stored: StoredArray) -> None:
    """Put ``stored`` (rows, columns) into ``ds`` as native little-endian pixels."""
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    ds.HighBit = ds.BitsStored - 1
    ds.add_new("PixelData", "OW" if ds.BitsAllocated > 8 else "OB", data + b"\0" * (len(data) % 2))


def _save(ds: Dataset, path: Path, source: Path) -> None:
    try:
        with quiet():
            pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=True, enforce_file_format=True)
    except OSError:
        raise  # the place, not the data: told by whoever writes there
    except DECODER_ERRORS as error:
        raise InputError(
            f"its header cannot be copied ({type(error).__name__})", remedy="export it again", path=source
        ) from error
