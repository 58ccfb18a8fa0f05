"""Show what a path holds: each series and image, what would be done with it, or why not.

Scans are read whole, as what is damaged shows in their pixels, but one at a time: memory holds one of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from n2s_med.errors import InputError
from n2s_med.volumes import Arrays, Refusal, Source, nothing_usable, refusal_of, shown, survey

if TYPE_CHECKING:
    from n2s_med.report import JSONValue

_AXES = {"angle": ", along the angle", "time": ", along time"}
_COLUMNS = ("scan", "where", "vendor", "grid (X x Y x Z)", "spacing, mm", "units", "verdict")


@dataclass(frozen=True)
class Found:
    """One scan at a path, free of patient data.

    Attributes
    ----------
    scan, path
        What it is, and its file or folder.
    verdict
        What would be done with it, or why it is left out.
    notes
        What must be said of its geometry and values.
    modality, vendor, units
        As :mod:`n2s_med.volumes.contents` has them; ``None`` for what is left out.
    shape, spacing_mm
        Of the volume (C, X, Y, Z).
    """

    scan: str
    path: str
    verdict: str
    notes: tuple[str, ...] = ()
    modality: str | None = None
    vendor: str | None = None
    units: str | None = None
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None

    def figures(self) -> dict[str, JSONValue]:
        """What is known of it, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def inspect(path: Path) -> list[Found]:
    """Return what ``path`` holds: first what would be denoised, then what is left out.

    Raises
    ------
    InputError
        Nothing there can be denoised.
    """
    contents = survey(path)
    found, refusals = [], list(contents.refusals)
    for source in contents.sources:
        try:
            found.append(_usable(source, source.arrays()))
        except InputError as error:
            refusals.append(refusal_of(source, error))
    if not found:
        raise nothing_usable(path, refusals)
    return [*found, *map(_left_out, refusals)]


def table(found: Sequence[Found]) -> str:
    """Return ``found`` as a table in plain text, paths below the folder that all share; notes below their scan."""
    common = Path(os.path.commonpath([scan.path for scan in found])) if found else Path()
    rows = [_COLUMNS, *(_cells(scan, common) for scan in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    lines = [_line(_COLUMNS, widths)]
    for scan, cells in zip(found, rows[1:], strict=True):
        lines += [_line(cells, widths), *(f"    note: {note}" for note in scan.notes)]
    return "\n".join(lines)


def _usable(source: Source, volume: Arrays) -> Found:
    meta = volume.meta
    notes = [*meta.get("notes", ()), *_of_values(meta)]
    return Found(
        scan=meta["label"],
        path=str(source.path),
        verdict=_verdict(volume),
        notes=tuple(notes),
        modality=meta["modality"],
        vendor=meta.get("vendor"),
        units=meta["units"],
        shape=volume.values.shape,
        spacing_mm=tuple(round(step, 4) for step in meta["spacing_mm"]),
    )


def _verdict(volume: Arrays) -> str:
    """Say what would be done: how many volumes, and whether as images or in three dimensions."""
    count, depth = volume.values.shape[0], volume.values.shape[3]
    how = "in 2D" if depth == 1 else f"in 3D{_AXES.get(volume.meta.get('third_axis', ''), '')}"
    return f"will be denoised {how}" + (f", {count} volumes one by one" if count > 1 else "")


def _of_values(meta: dict[str, object]) -> list[str]:
    """Return what must be said of the values."""
    notes = []
    if meta.get("counts"):
        notes.append("its values are raw counts: Poisson noise with a gain of exactly 1")
    if meta.get("component") in ("real", "imaginary"):
        notes.append(f"it is the {meta['component']} part of a complex signal: its noise is Gaussian, not Rician")
    suv = meta.get("suv")
    if isinstance(suv, dict) and suv["missing"]:
        notes.append(f"no SUV: without {', '.join(suv['missing'])}")
    if meta["modality"] is None:
        notes.append("the file does not say its modality: give --modality")
    return notes


def _left_out(refusal: Refusal) -> Found:
    return Found(refusal.label, str(refusal.path), f"left out: {refusal.reason}")


def _cells(found: Found, common: Path) -> tuple[str, ...]:
    path = Path(found.path)
    where = path.name if path == common and not path.is_dir() else path.relative_to(common).as_posix()
    grid = "x".join(map(str, found.shape[1:])) if found.shape else ""
    spacing = " x ".join(f"{step:.3g}" for step in found.spacing_mm) if found.spacing_mm else ""
    return found.scan, shown(where), found.vendor or "", grid, spacing, found.units or "", found.verdict


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=True)]
    return "  ".join([*padded, cells[-1]])
