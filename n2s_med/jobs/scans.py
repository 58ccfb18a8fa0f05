"""The scans that a job works on: each volume with its noise, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from n2s_med.jobs.noise import AUTO, NoiseChoice, NoiseRequest, choose_noise
from n2s_med.modalities import Modality
from n2s_med.noise.values import data, some_places
from n2s_med.score.patches import CENTRED_BY, UnitVolume
from n2s_med.unit_data import admitted, to_unit
from n2s_med.volumes import Volume, read, valid_mask

Say = Callable[[str], None]
"""Takes a line for the log."""


@dataclass(frozen=True)
class Scan:
    """One three-dimensional volume of a scan, its noise, and whence it came.

    Attributes
    ----------
    y
        Float32 (X, Y, Z), in the units of the scan.
    valid
        Boolean, same shape.
    choice
        Its noise.
    volume
        The volume it is a part of.
    """

    y: Tensor
    valid: Tensor
    choice: NoiseChoice
    volume: Volume

    @property
    def spatial_dims(self) -> int:
        """2 for a single slice, else 3."""
        return 2 if self.y.shape[-1] == 1 else 3

    @property
    def centre(self) -> float:
        """That of :meth:`unit`, without the rest of it."""
        noise = self.choice.noise
        if noise.quantum:
            return self.unit(0).centre
        y, valid = self._admitted
        places = some_places(valid, CENTRED_BY)
        return float(noise.law.at(places).to_unit(y[places]).median())

    @property
    def _admitted(self) -> tuple[Tensor, Tensor]:
        """The values, of a single slice without the third axis, and where they are data to which the law applies."""
        shape = self.y.shape[: self.spatial_dims]
        y = self.y.reshape(shape)
        return y, admitted(y, self.valid.reshape(shape), self.choice.noise)

    def unit(self, seed: int) -> UnitVolume:
        """The volume in the unit-noise domain, as training sees it."""
        (y, valid), noise = self._admitted, self.choice.noise
        generator = torch.Generator().manual_seed(seed)
        spacing = tuple(self.volume.meta["spacing_mm"])[: self.spatial_dims]
        return UnitVolume(to_unit(y, valid, noise, generator), valid, noise, spacing)


def scans_of(volume: Volume, modality: Modality | None, request: NoiseRequest) -> list[Scan]:
    """The volumes of a scan (one per time point), with their noise.

    It is measured on the first and holds for all, unless the times of acquisition differ: then each has its own.
    Values that are counts of events as acquired have a gain of exactly one, and white noise.

    Raises
    ------
    N2SError
        If the noise cannot be told or the data lie outside its law; see
        :func:`n2s_med.jobs.noise.choose_noise`.
    """
    plain, valid = volume.as_tensor(), torch.as_tensor(valid_mask(volume))
    spacing = volume.meta["spacing_mm"]
    if modality is not None and volume.meta.get("component", "magnitude") != "magnitude":
        modality = replace(modality, magnitude=False)
    if volume.meta.get("counts") and request.law == AUTO:
        request = NoiseRequest("poisson", {"gain": 1.0}, "white")
    alike = len(set(volume.meta.get("durations_s") or [None])) == 1
    choices: list[NoiseChoice] = []
    for y, inside in zip(plain, valid, strict=True):
        if alike and choices:
            choices[0].noise.law.check(data(y, inside))
            choices.append(choices[0])
        else:
            choices.append(choose_noise(y, inside, spacing, modality, request))
    return [Scan(*parts, volume) for parts in zip(plain, valid, choices, strict=True)]


def place_of(volume: Volume) -> Path:
    """The file of a volume, or the folder of its files: what an error about it names."""
    files = [Path(name) for name in volume.meta["source"]]
    return files[0] if len(set(files)) == 1 else files[0].parent


def volumes_of(inputs: Sequence[Path], say: Say) -> Iterator[Volume]:
    """Every volume of files and folders, those of one input in memory at a time; what is refused is said.

    Raises
    ------
    InputError
        If nothing of an input can be used.
    """
    for path in inputs:
        contents = read(path)
        for refusal in contents.refusals:
            say(f"left out: {refusal}")
        yield from contents.volumes
