"""Volumes: real scans in and out, as :class:`monai.data.MetaTensor` on their own grid.

:func:`read` finds what a path holds (DICOM series, NIfTI images) and why anything else is refused;
:func:`survey` does so without reading voxels, so that many scans can be taken one by one;
:func:`file_groups` does so for a tree of any size, keeping names alone;
:func:`write` puts a denoised volume back in the format it came in. The conventions of a volume are in
:mod:`n2s_med.volumes.contents`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from n2s_med.volumes.contents import Arrays, Contents, Refusal, Source, Survey, Volume, shown, valid_mask
from n2s_med.volumes.deidentify import Deidentifier
from n2s_med.volumes.files import nothing_usable, read, refusal_of, survey, survey_ahead, write, write_sd_map, writing
from n2s_med.volumes.nifti import NIFTI_SUFFIXES, is_nifti_name
from n2s_med.volumes.provenance import Provenance
from n2s_med.volumes.sidecar import read_json, sidecar_of, stated
from n2s_med.volumes.tree import FileGroup, file_groups
from n2s_med.volumes.workers import workers

if TYPE_CHECKING:
    from n2s_med.volumes.monai_io import DicomSeriesReader, DicomSeriesWriter, NiftiReader, NiftiWriter

__all__ = [
    "NIFTI_SUFFIXES",
    "Arrays",
    "Contents",
    "Deidentifier",
    "DicomSeriesReader",
    "DicomSeriesWriter",
    "FileGroup",
    "NiftiReader",
    "NiftiWriter",
    "Provenance",
    "Refusal",
    "Source",
    "Survey",
    "Volume",
    "file_groups",
    "is_nifti_name",
    "nothing_usable",
    "read",
    "read_json",
    "refusal_of",
    "shown",
    "sidecar_of",
    "stated",
    "survey",
    "survey_ahead",
    "valid_mask",
    "workers",
    "write",
    "write_sd_map",
    "writing",
]


def __getattr__(name: str) -> Any:
    """Import MONAI's readers and writers where they are asked for: MONAI takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from n2s_med.volumes import monai_io

    return getattr(monai_io, name)
