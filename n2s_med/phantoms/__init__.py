"""Volumes with a known truth: a PET phantom as DICOM, generated training volumes, benchmark anatomies."""

from n2s_med.phantoms.shapes import SCENES, textured_volume

__all__ = ["SCENES", "textured_volume"]
