"""A denoised volume as a derived DICOM series: one new image for each source image, on the same grid."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from n2s_med.atomic import whole
from n2s_med.errors import InputError, OutputError
from n2s_med.volumes.contents import Volume, array_of
from n2s_med.volumes.dicom_derive import Derivation, derive
from n2s_med.volumes.dicom_files import DECODER_ERRORS, is_dicom, read_whole
from n2s_med.volumes.dicom_headers import frames_of
from n2s_med.volumes.dicom_pixels import Storage, StoredArray, stored_frames
from n2s_med.volumes.dicom_reader import by_file
from n2s_med.volumes.frames import Frame
from n2s_med.volumes.grids import affine_of
from n2s_med.volumes.provenance import Provenance, moment_of_creation
from n2s_med.volumes.quantise import pet_slope, pet_storage, quantised, set_slope
from n2s_med.volumes.quiet import quiet
from n2s_med.volumes.workers import spread

_HEADER_BYTES = 8192
"""What the header of a derived file takes, about."""


def write_series(volume: Volume, folder: Path, *, provenance: Provenance, overwrite: bool = False) -> Path:
    """Write ``volume`` (C, X, Y, Z) into ``folder`` as a series derived from the one it was read from.

    Raises
    ------
    OutputError
        ``folder`` exists or cannot be written, or the volume is no longer on its source's grid.
    """
    with writing_series(volume, folder, provenance=provenance, overwrite=overwrite):
        return folder


@contextmanager
def writing_series(volume: Volume, folder: Path, *, provenance: Provenance, overwrite: bool = False) -> Iterator[None]:
    """Do as :func:`write_series` beside the block, and put the folder in its place when both have ended well."""
    frames = source_frames(volume)
    _check_target(folder, frames, overwrite)
    first = frames[0].file
    derivation = Derivation(
        provenance,
        provenance.uid("series", first.series_uid, first.instance_uid),
        moment_of_creation(),
    )
    values = array_of(volume)
    slices = values.shape[3]
    places = by_file((*divmod(n, slices), frame) for n, frame in enumerate(frames))
    needed = len(frames) * first.rows * first.columns * 2 + len(places) * _HEADER_BYTES
    with whole(folder, overwrite=overwrite, needed_bytes=needed) as partial:
        partial.mkdir()
        files = [
            _File(path, partial / f"{number:05d}.dcm", [_Plane(frame, values[c, :, :, z].T) for c, z, frame in found])
            for number, (path, found) in enumerate(places.items(), start=1)
        ]
        with spread(functools.partial(_write, derivation, bool(values.min() < 0)), files) as written:
            yield
            for _ in written:
                pass


def source_frames(volume: Volume) -> list[Frame]:
    """Return the source frames of ``volume``, in its order; it must still be on their grid."""
    names = volume.meta.get("source", ())
    files = {name: Path(name) for name in names}
    read = zip(files.items(), frames_of(files.values()), strict=True)
    found = {name: _by_index(path, frames.frames) for (name, path), frames in read}
    try:
        frames = [found[n][i] for n, i in zip(names, volume.meta.get("source_frames", ()), strict=True)]
    except LookupError as error:
        raise InputError("the source file has changed", remedy="read it again", path=names[0]) from error
    _check_grid(volume, frames)
    return frames


def _by_index(path: Path, frames: Sequence[Frame]) -> dict[int, Frame]:
    if not path.is_file():
        raise InputError("the source file is gone", remedy="restore it and try again", path=path)
    if not frames:
        raise InputError("the source file has changed", remedy="read it again", path=path)
    return {frame.index: frame for frame in frames}


def _check_grid(volume: Volume, frames: Sequence[Frame]) -> None:
    slices = volume.shape[-1]
    same = (
        len(volume.shape) == 4
        and len(frames) == volume.shape[0] * slices > 0
        and all((f.file.columns, f.file.rows) == tuple(volume.shape[1:3]) for f in frames)
        and np.allclose(affine_of(frames[:slices]), np.asarray(volume.affine), atol=1e-3)
    )
    if not same:
        raise OutputError(
            "the volume is no longer on the grid of its source",
            remedy="write it as NIfTI, or undo the resampling",
        )


def _check_target(folder: Path, frames: Sequence[Frame], overwrite: bool) -> None:
    """Refuse to replace the source, or anything but a folder of DICOM files."""
    if not overwrite or not folder.exists():
        return
    target = folder.resolve()
    if any(target in path.resolve().parents for path in {frame.file.path for frame in frames}):
        raise OutputError("it contains the source", remedy="choose another folder", path=folder)
    if not folder.is_dir() or any(not entry.is_file() or not is_dicom(entry) for entry in folder.iterdir()):
        raise OutputError(
            "it is not a folder of DICOM files only, so it is not replaced",
            remedy="choose another folder or remove it yourself",
            path=folder,
        )


@dataclass(frozen=True)
class _Plane:
    """A frame with its new values (rows, columns) in physical units."""

    frame: Frame
    values: NDArray[np.float32]


@dataclass(frozen=True)
class _File:
    """A file, the one that is derived from it, and the frames of that."""

    source: Path
    target: Path
    planes: Sequence[_Plane]


def _write(derivation: Derivation, signed: bool, file: _File) -> None:
    _save(_derived(file.source, file.planes, derivation, signed=signed), file.target, file.source)


def _derived(path: Path, planes: Sequence[_Plane], derivation: Derivation, *, signed: bool) -> Dataset:
    """Return the data set derived from the one at ``path``, with the frames ``planes`` in it."""
    ds = read_whole(path)
    indices = [plane.frame.index for plane in planes]
    before = Storage.of(ds, path)
    padded = before.padding is not None  # only then are the source's pixels needed, which may take long to decode
    sources = list(stored_frames(ds, path, indices)) if padded else [None] * len(indices)
    after = pet_storage(before, signed=signed) if planes[0].frame.file.modality == "PT" else before
    try:
        with quiet():
            derive(ds, derivation.without_identity(ds), indices)
            stored = [
                _stored(ds, number, plane, source, before, after)
                for number, (plane, source) in enumerate(zip(planes, sources, strict=True))
            ]
            _set_pixels(ds, stored, after)
    except DECODER_ERRORS as error:
        raise InputError(
            f"its header cannot be copied ({type(error).__name__})", remedy="export it again", path=path
        ) from error
    return ds


def _stored(
    ds: Dataset, number: int, plane: _Plane, source: StoredArray | None, before: Storage, after: Storage
) -> StoredArray:
    """Return the stored values of frame ``number`` of ``ds``; a PET frame gets a slope of its own.

    ``source`` are those of its source, whose padding stays; ``None`` where there is none.
    """
    padding = None if source is None else before.is_padding(source)
    data = plane.values if padding is None else plane.values[~padding]
    if not np.isfinite(data).all():
        raise OutputError("the volume holds NaN or infinite values", remedy="check the model")
    rescale = plane.frame.rescale
    if plane.frame.file.modality == "PT":
        slope = pet_slope(data, rescale[0], after)
        rescale = set_slope(ds, number, slope, after, changed=float(slope) != rescale[0]), 0.0
    stored = quantised(plane.values, rescale, after)
    if source is not None:
        stored[padding] = source[padding]
    return stored


def _set_pixels(ds: Dataset, frames: Sequence[StoredArray], storage: Storage) -> None:
    """Put ``frames`` (rows, columns) into ``ds`` as native little-endian pixels."""
    data = np.stack(frames).astype(storage.dtype.newbyteorder("<")).tobytes()
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = storage.bits_allocated, storage.bits_stored, storage.bits_stored - 1
    ds.PixelRepresentation = int(storage.signed)
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
