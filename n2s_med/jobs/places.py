"""Names and places of what denoising writes: results, SD maps, reports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from n2s_med.volumes import NIFTI_SUFFIXES, Source, Volume, is_nifti_name


def names_of(sources: Sequence[Source]) -> list[str]:
    """A name for each of several scans: that of a NIfTI file, numbered where it is taken; else a label."""
    names: list[str] = []
    for index, source in enumerate(sources, start=1):
        numbered = f"{index:03d}_"
        if source.format == "nifti":
            name = slug(source.path.name)
            taken = {stem_name(other).lower() for other in names}
            while stem_name(name).lower() in taken or not stem_name(name):
                name = numbered + name
            names.append(name)
        else:
            names.append(numbered + slug(source.label))
    return names


def sd_maps(target: Path) -> tuple[Path, Path]:
    """Where the SD map of a result may lie: as NIfTI, and as a Parametric Map."""
    stem = stem_of(target)
    return Path(f"{stem}.sd.nii.gz"), Path(f"{stem}.sd.dcm")


def sd_map_of(volume: Volume, target: Path) -> Path:
    """Where the SD map of a scan goes: a Parametric Map beside a DICOM series, else NIfTI."""
    nifti, parametric = sd_maps(target)
    return nifti if volume.meta["format"] == "nifti" or volume.shape[0] > 1 or is_nifti_name(target) else parametric


def stem_of(target: Path) -> Path:
    """Path of a result without the ending of a NIfTI image."""
    return target.with_name(stem_name(target.name))


def stem_name(name: str) -> str:
    """Return ``name`` without the ending of a NIfTI image: what the reports beside it begin with."""
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def slug(text: str) -> str:
    """Letters, digits, dots and dashes of ``text``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
