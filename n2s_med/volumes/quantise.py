"""Real values as stored ones: at most half a stored step is lost.

CT, MR, counts and ultrasound keep the scale of the source, so values outside its stored range are clipped; PET gets
a slope of its own for every frame, that of its largest value. Padding stays as it was stored.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from n2s_med.volumes.dicom_pixels import Storage, StoredArray
from n2s_med.volumes.functional_groups import ENHANCED_CLASSES, macro, unshare

SMALLEST_SLOPE = 1e-30
"""A PET frame whose slope would be smaller is empty."""


def quantised(values: NDArray[np.float32], rescale: tuple[float, float], storage: Storage) -> StoredArray:
    """Return the stored values nearest to ``values``, within the stored range and never padding's."""
    slope, intercept = rescale
    low, high = storage.bounds
    stored = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        stored -= intercept
        stored /= slope
        np.clip(np.rint(stored, out=stored), low, high, out=stored)
    if storage.padding is not None:
        first, last = storage.padding
        stored[storage.is_padding(stored)] = last + 1 if last < high else first - 1
        np.nan_to_num(stored, copy=False)  # NaN is left in padding alone
    result: StoredArray = stored.astype(storage.dtype)
    return result


def pet_storage(source: Storage, *, signed: bool) -> Storage:
    """Return how PET with ``signed`` values is stored: 16 bits, and a sign where it is needed."""
    sixteen = replace(source, bits_allocated=16, bits_stored=16)
    return replace(sixteen, signed=True) if signed and source.padding is None else sixteen


def pet_slope(data: NDArray[np.float32], source: float, storage: Storage) -> str:
    """Return the slope of a PET frame with the values ``data``, as the 16 characters that are written.

    It is the slope of the frame's largest value; the source's slope stays where it serves to within one bit, so
    that what was not changed is stored as it was.
    """
    low, high = storage.bounds
    peak = max(float(data.max(initial=0.0)) / high, float(data.min(initial=0.0)) / low if low else 0.0)
    stays = peak <= source * (1 + 1e-6) <= 2 * peak or peak <= SMALLEST_SLOPE
    return str(format_number_as_ds(source if stays else peak))


def set_slope(ds: Dataset, number: int, slope: str, storage: Storage, *, changed: bool) -> float:
    """Give frame ``number`` of ``ds`` the ``slope`` and no intercept; return the slope as it is written."""
    if ds.SOPClassUID in ENHANCED_CLASSES:
        _set_slope_of_frame(ds, number, slope, storage)
    else:
        ds.RescaleSlope, ds.RescaleIntercept = slope, "0"
        if changed and "RealWorldValueMappingSequence" in ds:
            del ds.RealWorldValueMappingSequence  # it maps values as they were stored
    return float(slope)


def _set_slope_of_frame(ds: Dataset, number: int, slope: str, storage: Storage) -> None:
    """Rescale one frame; a real-world map goes along, for it names the units."""
    rescale = macro(ds, number, "PixelValueTransformationSequence")
    rescale.RescaleSlope, rescale.RescaleIntercept = slope, "0"
    shared, own = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence[number]
    if "RealWorldValueMappingSequence" in shared or "RealWorldValueMappingSequence" in own:
        world = macro(ds, number, "RealWorldValueMappingSequence")
        world.RealWorldValueSlope, world.RealWorldValueIntercept = float(slope), 0.0
        low, high = storage.bounds
        world.add_new("RealWorldValueFirstValueMapped", "SS" if storage.signed else "US", low)
        world.add_new("RealWorldValueLastValueMapped", "SS" if storage.signed else "US", high)
    if number == ds.NumberOfFrames - 1:
        unshare(ds, "PixelValueTransformationSequence", "RealWorldValueMappingSequence")
