"""Stored pixels of DICOM frames, and their real values by the modality rescale alone.

No presentation lookup table, no inversion of MONOCHROME1 and no real-world map: those are for looking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import iter_pixels

from n2s_med.errors import InputError
from n2s_med.volumes.dicom_files import DECODER_ERRORS
from n2s_med.volumes.quiet import quiet

StoredArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]

LARGEST_COMPRESSED_FRAME = 1 << 26
"""Pixels of the largest compressed frame that is decoded: a few bytes can claim any number."""


@dataclass(frozen=True)
class Storage:
    """How the pixels of a file are stored.

    Attributes
    ----------
    bits_allocated, bits_stored
        Bits of the cell of a pixel, and those that are used.
    signed
        Whether negative values can be stored.
    padding
        First and last stored value that means padding, or ``None``.
    """

    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None

    @classmethod
    def of(cls, ds: Dataset, path: Path) -> Storage:
        """Return how the pixels of ``ds``, read from ``path``, are stored."""
        try:
            with quiet():
                return cls(int(ds.BitsAllocated), int(ds.BitsStored), ds.PixelRepresentation == 1, _padding_range(ds))
        except DECODER_ERRORS as error:
            raise InputError("its pixels are not described", remedy="export it again", path=path) from error

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest value that can be stored."""
        bits = self.bits_stored
        return (-(1 << bits - 1), (1 << bits - 1) - 1) if self.signed else (0, (1 << bits) - 1)

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Type of the stored values."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    def is_padding(self, stored: NDArray[Any]) -> BoolArray:
        """Return where the values ``stored`` mean padding."""
        if self.padding is None:
            return np.zeros(stored.shape, dtype=np.bool_)
        low, high = self.padding
        mask: BoolArray = (stored >= low) & (stored <= high)
        return mask


def stored_frames(ds: Dataset, path: Path, indices: Sequence[int]) -> Iterator[StoredArray]:
    """Yield the stored values (rows, columns) of the frames ``indices`` of ``ds``, one in memory at a time."""
    try:
        with quiet():
            _check_claims(ds)
            frames = iter_pixels(ds, indices=list(indices), raw=True)
        for _ in indices:
            with quiet():
                pixels: StoredArray = next(frames)
            if pixels.shape != (ds.Rows, ds.Columns) or pixels.dtype.kind not in "iu":
                raise InputError("its pixels are not images of integers", remedy="export it again", path=path)
            yield pixels
    except (*DECODER_ERRORS, StopIteration) as error:
        raise InputError(
            f"its pixels cannot be decoded ({type(error).__name__})",
            remedy="export it again, uncompressed",
            path=path,
        ) from error


def real_values(stored: StoredArray, rescale: tuple[float, float], path: Path) -> NDArray[np.float32]:
    """Return ``slope * stored + intercept``, computed in double precision, as float32."""
    slope, intercept = rescale
    with np.errstate(over="ignore"):
        values = (stored * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("its rescaled values are too large", remedy="check its Rescale Slope", path=path)
    return values


def _padding_range(ds: Dataset) -> tuple[int, int] | None:
    """Return the first and last stored value that means padding (Pixel Padding Value and Range Limit).

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


def _check_claims(ds: Dataset) -> None:
    """Refuse, before any decoder allocates, a compressed frame that claims another or an absurd size."""
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    if ds.Rows * ds.Columns > LARGEST_COMPRESSED_FRAME:
        raise ValueError("frame too large")
    for code in generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1)):
        claimed = _codestream_size(code)
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
