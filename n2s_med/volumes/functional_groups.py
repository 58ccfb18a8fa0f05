"""Enhanced multi-frame objects: the functional groups of each frame as one flat header, and back.

DICOM PS3.3 C.7.6.16: what all frames share stands in one item, what differs in one item per frame. A flat header
holds the same attributes as the header of a classic single-frame file, so that one parser serves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

ENHANCED_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
}
"""Enhanced and legacy converted enhanced CT, MR and PET images, with their Modality."""

FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_SPATIAL = {Tag("InStackPositionNumber"), Tag("ImagePositionPatient"), Tag("StackID")}
"""Dimensions that positions tell already."""
_CONVERTED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")
_HOMES = {
    Tag(attribute): home
    for home, attributes in {
        "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
        "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
        "PlaneOrientationSequence": ("ImageOrientationPatient",),
        "PlanePositionSequence": ("ImagePositionPatient",),
    }.items()
    for attribute in attributes
}
"""Macros that values and places are taken from alone, wherever else the same attribute stands."""
_MAY_REPEAT = {"DerivationImageSequence", "ReferencedImageSequence", "MRSpatialSaturationSequence", *_CONVERTED}


def flat_frames(ds: Dataset) -> Iterator[Dataset]:
    """Yield the flat header of each frame of the enhanced multi-frame object ``ds``."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    if len(per_frame) != int(ds.NumberOfFrames):
        raise ValueError("PerFrameFunctionalGroupsSequence")
    common = _flattened(shared)
    pointers = [Tag(item.DimensionIndexPointer) for item in ds.get("DimensionIndexSequence") or ()]
    for groups in per_frame:
        flat = Dataset()
        flat.update(_outside(ds))
        flat.update(common)
        flat.update(_flattened(groups))
        _rename(flat, pointers)
        yield flat


def _outside(ds: Dataset) -> dict[Any, Any]:
    """Return the elements of ``ds`` outside its functional groups."""
    return {tag: ds.get_item(tag) for tag in ds.keys() if tag.group != 0x5200}  # noqa: SIM118


def macro(ds: Dataset, index: int, keyword: str) -> Dataset:
    """Return the item of macro ``keyword`` of frame ``index``, to be changed: of its own, if it was shared."""
    groups = ds.PerFrameFunctionalGroupsSequence[index]
    if keyword not in groups:
        item = Dataset()
        for inherited in ds.SharedFunctionalGroupsSequence[0].get(keyword) or ():
            item.update(inherited)
        groups.add(DataElement(Tag(keyword), "SQ", Sequence([item])))
    found: Dataset = groups[keyword].value[0]
    return found


def unshare(ds: Dataset, *keywords: str) -> None:
    """Take macros out of the shared groups, once every frame has its own."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    for keyword in keywords:
        if keyword in shared:
            del shared[keyword]


def all_groups(ds: Dataset) -> Iterator[Dataset]:
    """Yield the shared groups and those of each frame."""
    yield from ds.get("SharedFunctionalGroupsSequence") or ()
    yield from ds.get("PerFrameFunctionalGroupsSequence") or ()


def _flattened(groups: Dataset) -> dict[Any, Any]:
    """Return the attributes of every macro, one level down; converted classic ones first, as the macros rule."""
    flat: dict[Any, Any] = {}
    for element in sorted(groups, key=lambda e: e.keyword not in _CONVERTED):
        if element.VR != "SQ" or not element.value or element.tag.is_private:
            continue
        if len(element.value) > 1 and element.keyword not in _MAY_REPEAT:
            raise ValueError(element.keyword)
        item, here = element.value[0], element.keyword
        told = (tag for tag in item.keys() if here in (_HOMES.get(tag, here), *_CONVERTED))  # noqa: SIM118
        flat.update({tag: item.get_item(tag) for tag in told})
    return flat


def _rename(flat: Dataset, pointers: list[Any]) -> None:
    """Give the attributes of the groups the names that they have in classic files."""
    for new, old in (("EchoTime", "EffectiveEchoTime"), ("ImageType", "FrameType")):
        if old in flat:
            setattr(flat, new, flat[old].value)
    for gradient in flat.get("DiffusionGradientDirectionSequence") or ():
        flat.DiffusionGradientOrientation = gradient.get("DiffusionGradientOrientation")
    indices = flat.get("DimensionIndexValues")
    if indices is not None and not isinstance(indices, int) and len(indices) == len(pointers):
        told = [index for index, pointer in zip(indices, pointers, strict=True) if pointer not in _SPATIAL]
        flat.DimensionIndexValues = told or None
    elif indices is not None:
        del flat.DimensionIndexValues
