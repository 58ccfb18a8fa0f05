"""Volumes: real scans in and out, as :class:`monai.data.MetaTensor` on their own grid.

:func:`read` finds what a path holds (DICOM series, NIfTI images) and why anything else is refused;
:func:`survey` does so without reading voxels, so that many scans can be taken one by one;
:func:`file_groups` does so for a tree of any size, keeping names alone;
:func:`write` puts a denoised volume back in the format it came in. The conventions of a volume are in
:mod:`n2s_med.volumes.contents`.
"""

from n2s_med.volumes.contents import Contents, Refusal, Source, Survey, valid_mask
from n2s_med.volumes.dicom_reader import DicomSeriesReader
from n2s_med.volumes.dicom_writer import DicomSeriesWriter
from n2s_med.volumes.files import nothing_usable, read, refusal_of, survey, write, write_sd_map
from n2s_med.volumes.nifti import NiftiReader, NiftiWriter
from n2s_med.volumes.provenance import Provenance
from n2s_med.volumes.tree import FileGroup, file_groups

__all__ = [
    "Contents",
    "DicomSeriesReader",
    "DicomSeriesWriter",
    "FileGroup",
    "NiftiReader",
    "NiftiWriter",
    "Provenance",
    "Refusal",
    "Source",
    "Survey",
    "file_groups",
    "nothing_usable",
    "read",
    "refusal_of",
    "survey",
    "valid_mask",
    "write",
    "write_sd_map",
]
