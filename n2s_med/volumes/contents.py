"""What a path holds, and the conventions of a volume.

A volume (:class:`Volume`) is a float32 :class:`monai.data.MetaTensor`, or :class:`Arrays` where MONAI has no part, of
shape ``(C, X, Y, Z)`` with a float64 affine from voxel indices to RAS millimetres. ``C`` counts three-dimensional
volumes on the same grid (1, or the time points); ``Z`` is 1 for a single image. Its ``meta`` holds, besides MONAI's own
keys:

=============  =====================================================================================
format         ``"nifti"`` or ``"dicom"``
modality       key of :data:`n2s_med.modalities.MODALITIES`, or ``None`` where the file does not say
units          ``"BQML"``, ``"HU"``, …, or ``"unknown"``
spacing_mm     three floats, along X, Y and Z
valid          bool tensor (array) that broadcasts to the volume; ``False`` is padding, not data
source         paths, as strings: one per slice, X-Y planes in the order of (C, Z); one for NIfTI
label          short name for logs and reports, free of patient data
suv            PET only: ``{"factor": float | None, "missing": (what is missing, …)}``
nifti_header   NIfTI only: the source's header as little-endian bytes (uint8 array)
=============  =====================================================================================

Volumes from DICOM also have:

=============  =====================================================================================
source_frames  number in its file, from 0, of the frame that each of ``source`` is
notes          sentences on the geometry that must be told: tilt, runs of an uneven series, …
vendor         who made the scanner, of those that are known; else ``"other"``
third_axis     what Z counts: ``"space"``, ``"angle"``, ``"time"`` or ``"none"``
component      MR: ``"magnitude"``, ``"real"`` or ``"imaginary"``; only magnitude is Rician
counts         whether values are counts of events as acquired: Poisson with a gain of exactly 1
stacks         C names: what tells the volumes apart (echo time, b-value, …)
durations_s    C times of acquisition, or ``None`` where the file does not say: the noise level of counts
               goes with them
=============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

FloatArray = NDArray[np.float64]
"""Affines, positions and other small arrays of double precision."""


@dataclass(frozen=True)
class Refusal:
    """A series or file that was found and not read.

    Attributes
    ----------
    path
        The file, or the folder of the series.
    label
        What it is, free of patient data.
    reason
        Why it was refused, free of patient data.
    """

    path: Path
    label: str
    reason: str

    def __str__(self) -> str:
        return f"{shown(str(self.path))} ({self.label}): {self.reason}"


class Volume(Protocol):
    """What a volume offers, be it MONAI's or not."""

    @property
    def meta(self) -> dict[str, Any]:
        """As above."""
        ...

    @property
    def affine(self) -> Any:
        """From voxel indices to RAS mm, (4, 4)."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """(C, X, Y, Z)."""
        ...

    def as_tensor(self) -> torch.Tensor:
        """The values alone."""
        ...


@dataclass(frozen=True)
class Arrays:
    """A volume that needs neither PyTorch nor MONAI, which take seconds to import.

    Attributes
    ----------
    values
        Float32 (C, X, Y, Z), in physical units.
    affine
        Float64 (4, 4), from voxel indices to RAS mm.
    meta
        As above, but ``valid`` is an array.
    """

    values: NDArray[np.float32]
    affine: FloatArray
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, X, Y, Z)."""
        return self.values.shape

    def as_tensor(self) -> torch.Tensor:
        """Return the values as a tensor, which shares their memory."""
        import torch

        return torch.from_numpy(self.values)

    def volume(self) -> MetaTensor:
        """Return the same as a MetaTensor, which shares the memory of the values."""
        import torch
        from monai.data import MetaTensor

        meta = {**self.meta, "valid": torch.from_numpy(self.meta["valid"])}
        return MetaTensor(torch.from_numpy(self.values), affine=torch.from_numpy(self.affine), meta=meta)


@dataclass(frozen=True)
class Source:
    """A series or image that was found, its voxels not read yet.

    Attributes
    ----------
    path
        The file, or the folder of the series.
    label
        What it is, free of patient data.
    format
        As in the volume's ``meta``.
    arrays
        Reads its voxels, or raises :class:`~n2s_med.errors.InputError`.
    """

    path: Path
    label: str
    format: str
    arrays: Callable[[], Arrays]

    def load(self) -> MetaTensor:
        """Read its volume.

        Raises
        ------
        InputError
            If it is damaged.
        """
        return self.arrays().volume()


@dataclass(frozen=True)
class Survey:
    """The series and images that a path holds, and what was refused there, without any voxels."""

    sources: tuple[Source, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True)
class Contents:
    """The volumes that a path holds and what was refused there."""

    volumes: tuple[MetaTensor, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def shown(name: str) -> str:
    """Return the name of a file or folder on one line, whatever characters it has."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def array_of(values: Any) -> NDArray[np.float32]:
    """Return the float32 array of a volume, tensor or array on any device, without its metadata."""
    if isinstance(values, Arrays):
        return values.values
    import torch

    plain = values.as_subclass(torch.Tensor).detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(plain, dtype=np.float32)


def planes_apart(values: NDArray[Any]) -> NDArray[Any]:
    """Return ``values`` (C, X, Y, Z) with each X-Y plane in one piece of memory, as everything works plane by plane."""
    return np.ascontiguousarray(np.moveaxis(values, 3, 1)).transpose(0, 2, 3, 1)


def spacing_of(affine: FloatArray) -> tuple[float, float, float]:
    """Return the distance in mm between neighbouring voxels along X, Y and Z of ``affine``."""
    x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def valid_mask(volume: Volume) -> torch.Tensor:
    """Return the bool mask (C, X, Y, Z) of ``volume`` that is ``False`` where there is padding, not data."""
    import torch

    return torch.as_tensor(volume.meta["valid"]).expand(*volume.shape)


def everywhere() -> NDArray[np.bool_]:
    """Return the mask of a volume without padding; it broadcasts to any volume."""
    return np.ones((1, 1, 1, 1), dtype=np.bool_)
