"""Readers and writers for MONAI's ``LoadImage`` and ``SaveImage``; the volumes are those of :mod:`n2s_med.volumes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import ImageReader, ImageWriter, MetaTensor
from monai.utils import ensure_tuple
from numpy.typing import NDArray

from n2s_med.errors import OutputError, UnsupportedError
from n2s_med.volumes.contents import Arrays, array_of
from n2s_med.volumes.dicom_files import is_dicom
from n2s_med.volumes.dicom_reader import find_series, load_series
from n2s_med.volumes.dicom_series import Series
from n2s_med.volumes.dicom_writer import write_series
from n2s_med.volumes.nifti import arrays_of, is_nifti_name, open_nifti, writing_nifti


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

    def get_data(self, img: Series) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the values (C, X, Y, Z) and the metadata of the series ``img``."""
        return _for_monai(load_series(img))


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


class NiftiReader(ImageReader):  # type: ignore[misc]
    """MONAI reader of one NIfTI image; ``LoadImage(reader=NiftiReader())`` gives what ``read`` gives."""

    def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
        """Say whether ``filename`` ends like a NIfTI image's."""
        return all(is_nifti_name(Path(name)) for name in ensure_tuple(filename))

    def read(self, data: Sequence[Path | str] | Path | str, **_: Any) -> Any:
        """Return the nibabel image at ``data``, its header checked, its voxels not read yet."""
        (name,) = ensure_tuple(data)
        return open_nifti(Path(name))

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """Return the values (C, X, Y, Z) and the metadata of the nibabel image ``img``."""
        return _for_monai(arrays_of(img))


class NiftiWriter(ImageWriter):  # type: ignore[misc]
    """MONAI writer of float32 NIfTI images; values are written as they are, never resampled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._data: NDArray[Any] | None = None
        self._meta: dict[str, Any] = {}

    def set_data_array(self, data_array: Any, **_: Any) -> None:
        """Take the values (C, X, Y, Z)."""
        self._data = array_of(data_array)

    def set_metadata(self, meta_dict: Any, **_: Any) -> None:
        """Take the metadata of the volume: its affine, and the source's header if it has one."""
        self._meta = dict(meta_dict or {})

    def write(self, filename: Path | str, verbose: bool = True, **options: Any) -> None:
        """Write the image to ``filename`` (``.nii`` or ``.nii.gz``), whole or not at all.

        ``overwrite`` and ``version`` (of this package, for the description) are taken from ``options``.
        """
        super().write(filename, verbose=verbose)
        if self._data is None:
            raise OutputError("there are no voxels to write", remedy="call set_data_array first")
        path = Path(filename)
        if not is_nifti_name(path):
            raise OutputError("its name is not a NIfTI image's", remedy="end it in .nii.gz", path=path)
        version, overwrite = str(options.get("version", "")), bool(options.get("overwrite"))
        with writing_nifti(self._data, self._meta, path, version=version, overwrite=overwrite):
            pass


def _for_monai(arrays: Arrays) -> tuple[NDArray[Any], dict[str, Any]]:
    """Return values and metadata as ``LoadImage`` wants them."""
    meta = {**arrays.meta, "valid": torch.from_numpy(arrays.meta["valid"])}
    return arrays.values, {**meta, "affine": arrays.affine, "original_channel_dim": 0}
