"""Volumes: real scans in and out, as :class:`monai.data.MetaTensor` on their own grid.

:func:`read` finds what a path holds (DICOM series, NIfTI images) and why anything else is refused;
:func:`write` puts a denoised volume back in the format it came in. The conventions of a volume are in
:mod:`n2s_med.volumes.contents`.
"""

from n2s_med.volumes.contents import Contents, Refusal, valid_mask
from n2s_med.volumes.dicom_reader import DicomSeriesReader
from n2s_med.volumes.dicom_writer import DicomSeriesWriter
from n2s_med.volumes.files import read, write, write_sd_map
from n2s_med.volumes.nifti import NiftiReader, NiftiWriter
from n2s_med.volumes.provenance import Provenance

__all__ = [
    "Contents",
    "DicomSeriesReader",
    "DicomSeriesWriter",
    "NiftiReader",
    "NiftiWriter",
    "Provenance",
    "Refusal",
    "read",
    "valid_mask",
    "write",
    "write_sd_map",
]
