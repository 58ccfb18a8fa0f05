"""Stored pixels of one DICOM image, and their real values by the modality rescale alone.

No presentation lookup table, no inversion of MONOCHROME1 and no real-world map: those are for looking.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from n2s_med.errors import InputError
from n2s_med.volumes.dicom_files import DECODER_ERRORS
from n2s_med.volumes.quiet import quiet

StoredArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]

LARGEST_COMPRESSED_FRAME = 1 << 26
"""Pixels of the largest compressed frame that is decoded: a few bytes can claim any number."""


def stored_pixels(ds: Dataset, path: Path) -> StoredArray:
    """Return the stored values (rows, columns) of ``ds``, in the type that its header states."""
    try:
        with quiet():
            _check_claims(ds)
            pixels: StoredArray = ds.pixel_array
    except DECODER_ERRORS as error:
        raise InputError(
            f"its pixels cannot be decoded ({type(error).__name__})",
            remedy="export it again, uncompressed",
            path=path,
        ) from error
    if pixels.shape != (ds.Rows, ds.Columns) or pixels.dtype.kind not in "iu":
        raise InputError("its pixels are not one image of integers", remedy="export it again", path=path)
    return pixels


def rescale_of(ds: Dataset, path: Path) -> tuple[float, float]:
    """Return Rescale Slope and Intercept, 1 and 0 where there are none."""
    try:
        with quiet():
            slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
            numbers = float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    except DECODER_ERRORS as error:
        raise InputError("its rescale is damaged", remedy="export it again", path=path) from error
    if not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        raise InputError("its Rescale Slope is zero or not a number", remedy="export it again", path=path)
    return numbers


def real_values(stored: StoredArray, rescale: tuple[float, float], path: Path) -> NDArray[np.float32]:
    """Return ``slope * stored + intercept``, computed in double precision, as float32."""
    slope, intercept = rescale
    with np.errstate(over="ignore"):
        values = (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("its rescaled values are too large", remedy="check its Rescale Slope", path=path)
    return values


def padding_of(ds: Dataset, stored: StoredArray) -> BoolArray:
    """Return where ``stored`` is padding: Pixel Padding Value, or from it to the Range Limit."""
    bounds = padding_range(ds)
    if bounds is None:
        return np.zeros(stored.shape, dtype=np.bool_)
    low, high = bounds
    mask: BoolArray = (stored >= low) & (stored <= high)
    return mask


def padding_range(ds: Dataset) -> tuple[int, int] | None:
    """Return the first and last stored value that means padding, or ``None``.

    Some scanners state a negative value as its unsigned twin, or the reverse; it is read as stored.
    """
    value = ds.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    ends = sorted(_as_stored(ds, end) for end in (value, limit if isinstance(limit, int) else value))
    return ends[0], ends[-1]


def _as_stored(ds: Dataset, value: int) -> int:
    span = 1 << int(ds.BitsAllocated)
    wrapped = value % span
    return wrapped - span if ds.PixelRepresentation == 1 and wrapped >= span // 2 else wrapped


def stored_range(ds: Dataset) -> tuple[int, int]:
    """Return the least and greatest value that Bits Stored and Pixel Representation admit."""
    bits = int(ds.BitsStored)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if ds.PixelRepresentation == 1 else (0, (1 << bits) - 1)


def _check_claims(ds: Dataset) -> None:
    """Refuse, before any decoder allocates, a compressed frame that claims another or an absurd size."""
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    if ds.Rows * ds.Columns > LARGEST_COMPRESSED_FRAME:
        raise ValueError("frame too large")
    claimed = _codestream_size(next(generate_frames(ds.PixelData, number_of_frames=1)))
    if claimed is not None and claimed != (ds.Rows, ds.Columns):
        raise ValueError("frame of another size")


def _codestream_size(code: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream states; ``None`` for RLE."""
    if code[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SIZ (ISO 15444-1 A.5.1)
        width, height, left, top = (int.from_bytes(code[at : at + 4], "big") for at in (8, 12, 16, 20))
        return height - top, width - left
    if code[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(code) and code[at] == 0xFF:  # JPEG: segments up to the frame header (ISO 10918-1 B.2.2)
        marker = code[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = (int.from_bytes(code[at + 5 + skip : at + 7 + skip], "big") for skip in (0, 2))
            return height, width
        at += 1 if marker == 0xFF else 2 + int.from_bytes(code[at + 2 : at + 4], "big")
    raise ValueError("no frame header")
