"""The JSON file beside a NIfTI image, which says what the image does not: as dcm2niix writes it and BIDS wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from n2s_med.errors import InputError, UnsupportedError
from n2s_med.modalities import MODALITIES
from n2s_med.volumes.dicom_headers import vendor_named
from n2s_med.volumes.dicom_refusals import component_of, why_no_signal

_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_UNITS = {"Bq/mL": "BQML", "BQML": "BQML", "g/mL": "GML", "GML": "GML", "CNTS": "CNTS", "counts": "CNTS"}
"""Units that are known, by how sidecars write them."""


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at ``path``.

    Raises
    ------
    InputError
        There is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("no readable JSON", remedy="repair or remove it", path=path) from error
    if not isinstance(content, dict):
        raise InputError("no JSON object", remedy="repair or remove it", path=path)
    return content


def sidecar_of(image: Path, ending: str = ".json") -> Path | None:
    """Return the file beside a NIfTI ``image`` with its name and this ending, if it is there."""
    stem = image.name.removesuffix(".gz").removesuffix(".GZ")
    path = image.with_name(stem[: -len(".nii")] + ending)
    return path if path.is_file() else None


def stated(metadata: Mapping[str, Any], volumes: int, path: Path) -> dict[str, Any]:
    """Return what ``metadata`` say of an image of so many volumes, in the words of a volume's ``meta``.

    What is missing, or not understood, is left out.

    Raises
    ------
    UnsupportedError
        It is no image of a signal but a phase, or a map of the field or of velocities.
    """
    found: dict[str, Any] = {}
    modality = next((row.name for row in MODALITIES.values() if row.dicom == metadata.get("Modality")), None)
    if modality:
        found["modality"] = modality
    if isinstance(metadata.get("Manufacturer"), str):
        found["vendor"] = vendor_named(metadata["Manufacturer"])
    units = metadata.get("Units")
    if isinstance(units, str) and units in _UNITS:
        found["units"] = _UNITS[units]
    durations = metadata.get("FrameDuration")
    if isinstance(durations, list) and len(durations) == volumes and all(map(_is_duration, durations)):
        found["durations_s"] = tuple(map(float, durations))
    if modality in (None, "mr"):
        found |= _part(metadata, path)
    return found


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _part(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return which part of a complex signal the image shows; refuse what is none."""
    kinds = metadata.get("ImageType")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        return {}
    header = Dataset()
    header.SOPClassUID, header.ImageType = _MR_IMAGE, kinds
    reason = why_no_signal(header)
    if reason:
        raise UnsupportedError(f"{reason} (so its sidecar says)", remedy="leave it out", path=path)
    return {"component": str(component_of(header))}
