"""NIfTI images as volumes, and back: ``.nii`` and ``.nii.gz``, two to four dimensions.

The header of the source (qform, sform, units, repetition time, …) is kept; only what speaks of the voxels
themselves (type, scaling, intent, description) is written anew.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip_threaded
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from n2s_med.atomic import whole
from n2s_med.errors import InputError, UnsupportedError
from n2s_med.volumes.contents import Arrays, FloatArray, everywhere, planes_apart, spacing_of
from n2s_med.volumes.limits import DEFLATE_RATIO, LARGEST_MM, SMALLEST_MM
from n2s_med.volumes.provenance import one_line
from n2s_med.volumes.quiet import quiet
from n2s_med.volumes.sidecar import read_json, sidecar_of, stated
from n2s_med.volumes.workers import hands

_TEXTS = ("db_name", "aux_file")
"""Text of a header that stays where the description is replaced."""
NIFTI_SUFFIXES = (".nii", ".nii.gz")

_MM_PER_UNIT = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_ERRORS = (
    ImageFileError, HeaderDataError, WrapStructError, gzip.BadGzipFile, zlib.error, EOFError, OSError,
    ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError,
)  # fmt: skip


def is_nifti_name(path: Path) -> bool:
    """Say whether the name of ``path`` ends like a NIfTI image's."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: Path) -> Arrays:
    """Return the volume (C, X, Y, Z) at ``path``; modality and units are known where a JSON file beside it says them.

    Raises
    ------
    InputError
        If it is not there, or damaged.
    """
    volume = arrays_of(open_nifti(path))
    sidecar = sidecar_of(path)
    if sidecar:
        volume.meta.update(stated(read_json(sidecar), len(volume.values), path))
    return volume


def open_nifti(path: Path) -> Any:
    """Return the nibabel image at ``path``, its header checked, its voxels not read yet."""
    try:
        with quiet():
            image = nib.load(path)
            _check_claims(image, path)
    except FileNotFoundError as error:
        raise InputError("no such file", remedy="check the path", path=path) from error
    except PermissionError as error:
        raise InputError("it may not be read", remedy="check its permissions", path=path) from error
    except _ERRORS as error:
        raise _damaged(path, error) from error
    return image


def arrays_of(image: Any) -> Arrays:
    """Return the volume of a nibabel image that :func:`open_nifti` gave."""
    path = Path(image.get_filename())
    values, affine = _values(image, path), _affine(image, path)
    meta = {
        "format": "nifti",
        "modality": None,
        "units": "unknown",
        "spacing_mm": spacing_of(affine),
        "valid": everywhere(),
        "source": (str(path),),
        "label": _label(values.shape),
        "nifti_header": _header_bytes(image.header),
    }
    return Arrays(values, affine, meta)


@contextmanager
def writing_nifti(
    values: NDArray[np.float32],
    meta: dict[str, Any],
    path: Path,
    *,
    version: str,
    overwrite: bool,
    deidentify: bool = False,
) -> Iterator[None]:
    """Write ``values`` (C, X, Y, Z) beside the block to ``path`` (``.nii`` or ``.nii.gz``), whole or not at all.

    It is put in its place when both have ended well.

    Parameters
    ----------
    values
        Written as they are, as float32.
    meta
        Metadata of the volume: its affine, and the source's header if it has one.
    path, overwrite
        Where to, and whether what is there is replaced.
    version
        Of this package, for the description.
    deidentify
        Whether all other text of the source's header is dropped.
    """
    description = one_line(f"denoised by n2s-med {version}")[:79]
    image = _image(values, meta, description)
    for name in _TEXTS if deidentify else ():
        if name in image.header:
            image.header[name] = b""
    compressed = path.name.lower().endswith(".gz")
    needed = values.nbytes // (4 if compressed else 1)
    with whole(path, overwrite=overwrite, needed_bytes=needed) as partial, ThreadPoolExecutor(1, "writing") as thread:
        saved = thread.submit(_save, image, partial, compressed=compressed)
        yield
        saved.result()


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"the NIfTI image is damaged ({type(error).__name__})", remedy="copy or export it again", path=path
    )


def _check_claims(image: Any, path: Path) -> None:
    """Refuse what is no real image of two to four dimensions, or larger than its file can hold."""
    if not isinstance(image, nib.Nifti1Image):
        raise UnsupportedError("it is not a single-file NIfTI image", remedy="convert it", path=path)
    dtype, shape = image.get_data_dtype(), image.shape
    if dtype.kind not in "iuf":
        raise UnsupportedError("colour and complex NIfTI are not read", remedy="convert it", path=path)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4:
        raise UnsupportedError(f"{len(shape)} dimensions", remedy="split it into 3D volumes", path=path)
    if min(shape) < 1:
        raise InputError("it has no voxels", remedy="export it again", path=path)
    claimed, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if claimed > size * (DEFLATE_RATIO if path.name.lower().endswith(".gz") else 1):
        raise InputError(
            f"its header claims {claimed} bytes of voxels, more than its {size} bytes can hold",
            remedy="copy or export it again",
            path=path,
        )


def _values(image: Any, path: Path) -> NDArray[np.float32]:
    """Return the scaled values (C, X, Y, Z) as float32."""
    try:
        with quiet(), np.errstate(over="ignore", invalid="ignore"):
            raw = np.asarray(image.dataobj, dtype=np.float32)
            values = raw.reshape(_four(raw.shape)).astype(np.float32, copy=False)
    except _ERRORS as error:
        raise _damaged(path, error) from error
    wrong = values.size - int(np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise InputError(
            f"{wrong} of {values.size} voxels are NaN or infinite",
            remedy="replace them by measured values or crop them away",
            path=path,
        )
    return planes_apart(np.moveaxis(values, 3, 0))


def _four(shape: Sequence[int]) -> tuple[int, ...]:
    """Return ``shape`` with exactly four axes."""
    return (*shape[:4], *(1 for _ in range(4 - len(shape))))


def _affine(image: Any, path: Path) -> FloatArray:
    """Return the affine in RAS mm; a single image, which may lack a step across it, gets one of 1 mm."""
    scale = _MM_PER_UNIT[_units(image.header)[0]]
    affine: FloatArray = np.array(image.affine, dtype=np.float64)
    affine[:3] *= scale
    if (len(image.shape) == 2 or image.shape[2] == 1) and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    steps = affine[:3, :3]
    sizes_ok = bool((np.abs(affine) <= LARGEST_MM).all()) and np.abs(steps).max() >= SMALLEST_MM
    if not sizes_ok or abs(np.linalg.det(steps)) <= 1e-9 * np.linalg.norm(steps) ** 3:
        raise InputError("its header gives no usable geometry", remedy="repair its qform or sform", path=path)
    return affine


def _label(shape: Sequence[int]) -> str:
    several = f"{shape[0]} volumes of " if shape[0] > 1 else ""
    return f"NIfTI, {several}{shape[1]}x{shape[2]}x{shape[3]} voxels"


def _units(header: Any) -> tuple[str, str]:
    """Return the units of length and time; unknown where the header's code means none."""
    try:
        length, time = header.get_xyzt_units()
    except KeyError:
        return "unknown", "unknown"
    return length, time


def _header_bytes(header: Any) -> NDArray[np.uint8]:
    return np.frombuffer(header.as_byteswapped("<").binaryblock, dtype=np.uint8)


def _image(values: NDArray[np.float32], meta: dict[str, Any], description: str) -> Any:
    """Return the nibabel image of ``values`` with the source's header, or with a new one."""
    block = meta.get("nifti_header")
    affine = np.asarray(meta.get("affine", np.eye(4)), dtype=np.float64)
    kind = nib.Nifti2Image if block is not None and len(block) > 348 else nib.Nifti1Image
    voxels = np.moveaxis(values, 0, 3)
    if block is None:
        image = kind(_fewest_axes(voxels), affine)
        image.header.set_xyzt_units("mm")
    else:
        header = kind.header_class(np.asarray(block).tobytes(), endianness="<", check=False)
        image = _with_header(kind, voxels, affine, header)
    image.header.set_data_dtype(np.float32)
    image.header.set_intent("none")
    image.header["descrip"] = description.encode()
    return image


def _with_header(kind: Any, voxels: NDArray[np.float32], affine: FloatArray, header: Any) -> Any:
    """Return the image with ``header``'s own forms, unless the volume was moved to another grid."""
    shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    same_grid = _four(shape) == voxels.shape
    image = kind(voxels.reshape(shape) if same_grid else _fewest_axes(voxels), None, header)
    stated = image.header.get_best_affine()
    stated[:3] *= _MM_PER_UNIT[_units(image.header)[0]]
    columns = [0, 1, 3] if voxels.shape[2] == 1 else [0, 1, 2, 3]
    if not same_grid or not np.allclose(stated[:, columns], affine[:, columns], rtol=1e-5, atol=1e-4):
        image.header.set_xyzt_units("mm", _units(image.header)[1])
        image.set_sform(affine, code="aligned")
        image.set_qform(affine, code="aligned")
    return image


def _fewest_axes(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    return voxels if voxels.shape[3] > 1 else voxels[..., 0]


def _save(image: Any, path: Path, *, compressed: bool) -> None:
    """Write ``image`` to ``path``; the same image gives the same bytes, however many threads compress them."""
    holders = image.make_file_map()
    with path.open("wb") as file:
        if not compressed:
            holders["image"].fileobj = file
            image.to_file_map(holders)
            return
        # zlib takes 25 times as long
        with igzip_threaded.open(file, "wb", threads=hands()) as packed, _Onward(packed) as onward:
            holders["image"].fileobj = onward
            image.to_file_map(holders)


class _Onward(io.RawIOBase):
    """A stream that is written from its beginning to its end, and tells nibabel where it is."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._place = stream, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place that lies ahead, if not here; what is passed over is zeros."""
        if whence != io.SEEK_SET or place < self._place:
            raise io.UnsupportedOperation("it is written onward only")
        self.write(bytes(place - self._place))
        return self._place

    def write(self, data: Any) -> int:
        written: int = self._stream.write(data)
        self._place += written
        return written
