"""Volumes with a known truth: a PET phantom as DICOM, generated training volumes, benchmark anatomies."""

from n2s_med.phantoms.brain import brain_phantom
from n2s_med.phantoms.ct import ct_phantom
from n2s_med.phantoms.pet import PetPhantom, Sphere, pet_phantom
from n2s_med.phantoms.pet_series import write_pet_series
from n2s_med.phantoms.shapes import SCENES, textured_volume

__all__ = [
    "SCENES",
    "PetPhantom",
    "Sphere",
    "brain_phantom",
    "ct_phantom",
    "pet_phantom",
    "textured_volume",
    "write_pet_series",
]
