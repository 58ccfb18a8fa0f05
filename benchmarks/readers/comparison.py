"""How far the volumes of a reader are from the frames of the files.

A reader's slice is matched to a frame by its pattern; then its corners and values are compared with the frame's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readers.libraries import Volume
from readers.truth import Floats, Truth

MATCHING = 0.9999
"""Correlation from which a slice is that frame."""
SAMPLES = 2048


@dataclass(frozen=True)
class Outcome:
    """What a reader made of a series."""

    volumes: int
    geometry_mm: float = 0.0
    value_percent: float = 0.0
    lost: int = 0
    spacing_mm: float = 1.0

    def cell(self, right: int) -> str:
        """For the table: bold where it is wrong."""
        if self.volumes == 0:
            return "refused" if right == 0 else "**refused**"
        if right == 0:
            return f"**{self.volumes}**"
        count = f"{self.volumes}" if self.volumes == right else f"**{self.volumes}**"
        geometry = _marked(f"{short(self.geometry_mm)} mm", self.geometry_mm > 0.1 * self.spacing_mm)
        value = _marked(f"{short(self.value_percent)} %", self.value_percent > 0.1)
        lost = f", **{self.lost} lost**" if self.lost else ""
        return f"{count}, {geometry}, {value}{lost}"

    def is_right(self, right: int) -> bool:
        """Whether nothing is wrong."""
        return "**" not in self.cell(right)


def short(number: float) -> str:
    """Return two digits of ``number``; what is below a thousandth is rounding."""
    return "0" if number < 1e-3 else f"{number:.2g}" if number < 10 else f"{number:.0f}"


def _marked(text: str, wrong: bool) -> str:
    return f"**{text}**" if wrong else text


def outcome(reader: Callable[[Path], list[Volume]], path: Path, frames: Sequence[Truth]) -> Outcome:
    """Return what ``reader`` makes of ``path``; whatever it raises is a refusal."""
    try:
        volumes = reader(path)
    except Exception:  # of any other library, for any reason
        return Outcome(0)
    return compare(volumes, frames)


def compare(volumes: Sequence[Volume], frames: Sequence[Truth]) -> Outcome:
    """Return how far ``volumes`` are from ``frames``, of which constant ones cannot be told apart and do not count."""
    count = sum(len(values) for values, _ in volumes)
    slices = [(values[c, :, :, z], affine, z) for values, affine in volumes for c, z in np.ndindex(values.shape[::3])]
    told = [frame for frame in frames if np.ptp(frame.values) > 0]
    if not told:
        return Outcome(count)
    largest = max(np.abs(frame.values).max() for frame in told)
    geometry = value = 0.0
    lost = 0
    shapes = {frame.values.shape for frame in told}
    patterns = {shape: _patterns([s for s, _, _ in slices if s.shape == shape]) for shape in shapes}
    for frame in told:
        alike = [entry for entry in slices if entry[0].shape == frame.values.shape]
        match = patterns[frame.values.shape] @ _patterns([frame.values])[0] if alike else np.zeros(1)
        if match.max() < MATCHING:
            lost += 1
            continue
        values, affine, z = min(
            (alike[i] for i in np.flatnonzero(match > match.max() - 1e-9)),
            key=lambda entry: _distance(frame, entry[1], entry[2]),
        )
        geometry = max(geometry, _distance(frame, affine, z))
        value = max(value, float(np.abs(values - frame.values).max() / largest * 100))
    return Outcome(count, geometry, value, lost, min(frame.thickness_mm for frame in frames))


def _patterns(planes: Sequence[Floats]) -> Floats:
    """Return samples of each plane, as vectors of mean 0 and length 1."""
    if not planes:
        return np.zeros((1, 1))
    flat = np.stack([plane.ravel() for plane in planes])
    sampled = (
        flat[:, np.random.default_rng(0).permutation(flat.shape[1])[:SAMPLES]] if flat.shape[1] > SAMPLES else flat
    )
    centred = sampled - sampled.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1)


def _distance(frame: Truth, affine: Floats, z: int) -> float:
    """Return the largest distance in mm of a corner of slice ``z`` from where it belongs."""
    x, y = frame.values.shape
    corners = (affine @ np.array([[0, 0, z, 1], [x - 1, 0, z, 1], [0, y - 1, z, 1]]).T)[:3].T
    return float(np.linalg.norm(corners - frame.corners, axis=1).max())
