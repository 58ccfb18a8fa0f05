"""The readers that are compared, each as a function from a path to volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monai.data import ITKReader, PydicomReader

from n2s_med.volumes import read as read_ours
from readers.truth import Floats

Volume = tuple[Floats, Floats]
"""Values (C, X, Y, Z) and the affine to LPS millimetres."""
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ours(path: Path) -> list[Volume]:
    """This package."""
    return [(v.numpy().astype(float), RAS @ v.affine.numpy()) for v in read_ours(path).volumes]


def simpleitk(path: Path) -> list[Volume]:
    """SimpleITK: every series that GDCM finds in the folder."""
    if path.is_file():
        return [_of_simpleitk(sitk.ReadImage(str(path)))]
    found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series)
        found.append(_of_simpleitk(sitk.ReadImage(names)))
    return found


def _of_simpleitk(image: Any) -> Volume:
    values = sitk.GetArrayFromImage(image).astype(float)
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = values.mean(axis=-1)
    dims = image.GetDimension()
    values = values.reshape((-1, *values.shape[-3:])) if dims > 2 else values[None, None]
    affine = np.eye(4)
    used = min(dims, 3)
    directions = np.array(image.GetDirection()).reshape(dims, dims)[:used, :used]
    affine[:used, :used] = directions * np.array(image.GetSpacing())[:used]
    affine[:used, 3] = image.GetOrigin()[:used]
    return values.transpose(0, 3, 2, 1), affine


def monai(reader: type) -> Callable[[Path], list[Volume]]:
    """A reader of MONAI."""

    def read(path: Path) -> list[Volume]:
        made = reader()
        values, meta = made.get_data(made.read(str(path)))
        affine = np.asarray(meta["affine"], dtype=float)
        space = np.asarray(values, dtype=float)
        space = space[..., None] if space.ndim == 2 else space
        stacks = np.moveaxis(space, 3, 0) if space.ndim == 4 else space[None]
        whole = np.eye(4)
        whole[: len(affine) - 1, : len(affine) - 1] = affine[:-1, :-1]
        whole[: len(affine) - 1, 3] = affine[:-1, -1]
        return [(stacks, RAS @ whole)]

    return read


READERS: dict[str, Callable[[Path], list[Volume]]] = {
    "n2s-med": ours,
    "SimpleITK": simpleitk,
    "MONAI ITKReader": monai(ITKReader),
    "MONAI PydicomReader": monai(PydicomReader),
}
