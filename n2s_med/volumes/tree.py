"""A tree of scans of any size: which files belong together, found without keeping more of them than their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom

from n2s_med.errors import InputError
from n2s_med.volumes.contents import Refusal, Survey
from n2s_med.volumes.dicom_files import DECODER_ERRORS, is_dicom
from n2s_med.volumes.files import files_below, survey_files
from n2s_med.volumes.nifti import is_nifti_name
from n2s_med.volumes.quiet import quiet


@dataclass(frozen=True)
class FileGroup:
    """The files of one DICOM series, wherever they lie in the tree, or one NIfTI image.

    Attributes
    ----------
    key
        Hash, in hexadecimal digits, of the series' UID or of the image's path below the root: the same in every run.
    files
        Sorted.
    """

    key: str
    files: tuple[Path, ...]

    def survey(self) -> Survey:
        """Return the scans that the files form, their voxels not read yet, and what was refused."""
        return survey_files(self.files)


def file_groups(root: Path) -> tuple[list[FileGroup], list[Refusal]]:
    """Return the groups of files below the folder ``root``, in the order of their first files, and refused files.

    Files that are neither DICOM nor NIfTI are passed over; a folder in it that cannot be read is a refusal.

    Raises
    ------
    InputError
        ``root`` cannot be read.
    """
    groups: dict[str, list[Path]] = {}
    files, refusals = files_below(root)
    for file in files:
        try:
            if is_nifti_name(file):
                groups[_key(["nifti", file.relative_to(root).as_posix()])] = [file]
            elif is_dicom(file):
                uid = _series_uid(file)
                identity = ["series", uid] if uid else ["dicom", file.relative_to(root).as_posix()]
                groups.setdefault(_key(identity), []).append(file)
        except InputError as error:
            refusals.append(Refusal(file, "file", error.cause))
    return [FileGroup(key, tuple(files)) for key, files in groups.items()], refusals


def _key(identity: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(identity).encode(errors="surrogateescape")).hexdigest()


def _series_uid(path: Path) -> str:
    """Return the Series Instance UID; empty where the header has none or is damaged, which the survey then tells."""
    try:
        with quiet():
            ds = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SeriesInstanceUID"])
            return str(ds.get("SeriesInstanceUID") or "")
    except DECODER_ERRORS:
        return ""
