"""Slices into series: grouping, order, and the checks that a stack is a regular grid.

Positions and orientations of the slices are the only truth: numbers, times and file names order nothing,
except to tell apart stacks that lie at the same positions.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from n2s_med.errors import InputError
from n2s_med.volumes.contents import FloatArray, Refusal
from n2s_med.volumes.dicom_files import SMALLEST_MM, SliceHeader, read_whole
from n2s_med.volumes.dicom_pixels import rescale_of, stored_pixels

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference of direction cosines within a series."""
SPACING_TOLERANCE = 0.05
"""Largest relative deviation of a gap from the median gap; PET tables jitter by up to 3 %."""
POSITION_TOLERANCE = 0.1
"""Largest distance of a slice from its place on the regular grid, in units of the spacing."""
TILT_TOLERANCE = 5e-3
"""Largest sideways step from slice to slice, in units of the spacing."""
SAME_PLACE_MM = 1e-3
"""Slices closer than this lie at the same position."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Series:
    """Slices that form one or several stacks on one regular grid.

    Attributes
    ----------
    stacks
        One tuple of slices per three-dimensional volume, each sorted along the slice normal.
    """

    stacks: tuple[tuple[SliceHeader, ...], ...]

    @property
    def first(self) -> SliceHeader:
        """The first slice of the first stack."""
        return self.stacks[0][0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order of (stack, slice)."""
        return tuple(slice_.path for stack in self.stacks for slice_ in stack)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, X, Y, Z) of the volume."""
        return len(self.stacks), self.first.columns, self.first.rows, len(self.stacks[0])

    @property
    def label(self) -> str:
        """E.g. ``"PT series 4, 267 slices of 128x128"``."""
        stacks, columns, rows, slices = self.shape
        several = f"{stacks} volumes of " if stacks > 1 else ""
        plural = "slice" if slices == 1 else "slices"
        return f"{self.first.label}, {several}{slices} {plural} of {columns}x{rows}"

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4) from voxel indices to RAS mm; the step from slice to slice is the mean one."""
        return affine_of(self.stacks[0])


def affine_of(stack: Sequence[SliceHeader]) -> FloatArray:
    """Return the affine (4, 4) of a sorted stack, from voxel indices to RAS mm (DICOM PS3.3 C.7.6.2.1.1)."""
    first, last = stack[0], stack[-1]
    between_rows, between_columns = first.spacing_mm
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row_direction) * between_columns
    lps[:3, 1] = np.array(first.column_direction) * between_rows
    if len(stack) > 1:
        lps[:3, 2] = (np.array(last.position_mm) - np.array(first.position_mm)) / (len(stack) - 1)
    else:
        lps[:3, 2] = _normal(first) * first.thickness_mm
    lps[:3, 3] = first.position_mm
    affine: FloatArray = _LPS_TO_RAS @ lps
    return affine


def build_series(headers: Iterable[SliceHeader]) -> tuple[list[Series], list[Refusal]]:
    """Return the regular series that ``headers`` form, and why the other ones are refused."""
    found: list[Series] = []
    refusals: list[Refusal] = []
    for group in _groups(headers):
        try:
            found.append(Series(_stacks(group)))
        except InputError as error:
            refusals.append(Refusal(_place(group), _group_label(group), error.cause))
    return found, refusals


def _place(group: Sequence[SliceHeader]) -> Path:
    return group[0].path if len(group) == 1 else group[0].path.parent


def _group_label(group: Sequence[SliceHeader]) -> str:
    first, count = group[0], len(group)
    return f"{first.label}, {count} {'slice' if count == 1 else 'slices'} of {first.columns}x{first.rows}"


def _groups(headers: Iterable[SliceHeader]) -> list[list[SliceHeader]]:
    """Group slices of one series, kind, matrix, pixel size, units, frame of reference and orientation."""
    exact: dict[tuple[object, ...], list[list[SliceHeader]]] = defaultdict(list)
    for header in headers:
        key = (
            header.series_uid, header.modality, header.rows, header.columns,
            header.frame_of_reference, header.units,
        )  # fmt: skip
        for group in exact[key]:
            if _same_grid(group[0], header):
                group.append(header)
                break
        else:
            exact[key].append([header])
    return [group for groups in exact.values() for group in groups]


def _same_grid(a: SliceHeader, b: SliceHeader) -> bool:
    directions_a, directions_b = (np.array(h.row_direction + h.column_direction) for h in (a, b))
    same_directions = np.abs(directions_a - directions_b).max() <= ORIENTATION_TOLERANCE
    return bool(same_directions and np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3))


def _stacks(group: Sequence[SliceHeader]) -> tuple[tuple[SliceHeader, ...], ...]:
    """Return the sorted stacks of ``group``; refuse what is no regular grid."""
    _check_directions(group[0])
    stacks = _full_stacks(_by_position(group))
    for stack in stacks:
        _check_grid(stack)
    return stacks


def _normal(header: SliceHeader) -> FloatArray:
    normal: FloatArray = np.cross(header.row_direction, header.column_direction)
    return normal


def _check_directions(header: SliceHeader) -> None:
    row, column = np.array(header.row_direction), np.array(header.column_direction)
    gram = np.array([row @ row - 1, column @ column - 1, row @ column])
    if np.abs(gram).max() > 1e-2:
        raise InputError("Image Orientation (Patient) is not a pair of perpendicular directions")
    if min(header.spacing_mm) < SMALLEST_MM:
        raise InputError("Pixel Spacing is not positive")


def _by_position(group: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """Return the slices of each position, sorted along the normal."""
    normal = _normal(group[0])

    def depth(header: SliceHeader) -> float:
        return float(np.array(header.position_mm) @ normal)

    places: list[list[SliceHeader]] = []
    for header in sorted(group, key=lambda h: (depth(h), h.instance_number, str(h.path))):
        if places and depth(header) - depth(places[-1][0]) < SAME_PLACE_MM:
            places[-1].append(header)
        else:
            places.append([header])
    return places


def _full_stacks(places: Sequence[Sequence[SliceHeader]]) -> tuple[tuple[SliceHeader, ...], ...]:
    """Return one stack, or several that the headers tell apart; identical copies are dropped."""
    if all(len(place) == 1 for place in places):
        return (tuple(place[0] for place in places),)
    once = [_without_copies(place, same_instance=True) for place in places]
    return (
        _keyed_stacks(once)
        or _consecutive_stacks(once)
        or _single_stack([_without_copies(place, same_instance=False) for place in once])
    )


def _without_copies(place: Sequence[SliceHeader], *, same_instance: bool) -> list[SliceHeader]:
    """Drop slices with the pixels and rescale of another one at this place (and its UID, if asked)."""
    if len(place) == 1 or (same_instance and len({header.instance_uid for header in place}) == len(place)):
        return list(place)
    kept: dict[tuple[object, ...], SliceHeader] = {}
    for header in place:
        ds = read_whole(header.path)
        identity = stored_pixels(ds, header.path).tobytes(), rescale_of(ds, header.path)
        kept.setdefault((*identity, header.instance_uid if same_instance else ""), header)
    return list(kept.values())


def _single_stack(places: Sequence[Sequence[SliceHeader]]) -> tuple[tuple[SliceHeader, ...], ...]:
    if any(len(place) > 1 for place in places):
        raise InputError("positions are there more than once and nothing tells the stacks apart")
    return (tuple(place[0] for place in places),)


def _keyed_stacks(places: Sequence[Sequence[SliceHeader]]) -> tuple[tuple[SliceHeader, ...], ...]:
    """Return the stacks that the first full set of keys tells apart; none where no set does."""
    count = len(places[0])
    slices = [header for place in places for header in place]
    names = [name for name in slices[0].stack_keys if len({h.stack_keys[name] for h in slices}) > 1]
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            stacks = _split(slices, chosen)
            if len(stacks) == count and all(_is_full(stack, places) for stack in stacks):
                return stacks
    return ()


def _is_full(stack: Sequence[SliceHeader], places: Sequence[Sequence[SliceHeader]]) -> bool:
    """Say whether ``stack`` has exactly one slice of each of ``places``, in their order."""
    return len(stack) == len(places) and all(
        any(header is other for other in place) for header, place in zip(stack, places, strict=True)
    )


def _split(slices: Sequence[SliceHeader], names: Sequence[str]) -> tuple[tuple[SliceHeader, ...], ...]:
    """Return the slices by the values of their keys ``names``; no position twice in a full stack."""
    stacks: dict[tuple[object, ...], list[SliceHeader]] = defaultdict(list)
    for header in slices:
        stacks[tuple(header.stack_keys[name] for name in names)].append(header)
    ordered = sorted(stacks.items(), key=lambda item: tuple(map(_sortable, item[0])))
    return tuple(tuple(stack) for _, stack in ordered)


def _sortable(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _consecutive_stacks(places: Sequence[Sequence[SliceHeader]]) -> tuple[tuple[SliceHeader, ...], ...]:
    """Return the time points of a series that states their number but not which slice has which.

    Its instance numbers must run through all positions once per time point; otherwise there are none.
    """
    slices = sorted((header for place in places for header in place), key=lambda h: h.instance_number)
    distinct = len({header.instance_number for header in slices}) == len(slices)
    if not distinct or min(header.time_points for header in slices) < 2 or len(slices) % len(places):
        return ()
    order = {header.path: depth for depth, place in enumerate(places) for header in place}
    runs = [slices[start : start + len(places)] for start in range(0, len(slices), len(places))]
    stacks = tuple(tuple(sorted(run, key=lambda h: order[h.path])) for run in runs)
    return stacks if all(_is_full(stack, places) for stack in stacks) else ()


def _check_grid(stack: Sequence[SliceHeader]) -> None:
    """Refuse gaps, uneven spacing and tilt: the grid of a volume is even."""
    if len(stack) < 2:
        return
    positions = np.array([header.position_mm for header in stack])
    gaps = np.diff(positions @ _normal(stack[0]))
    spacing = float(np.median(gaps))
    if np.abs(gaps / spacing - 1).max() > SPACING_TOLERANCE:
        raise InputError(
            f"its slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm): slices are missing, "
            "or several stacks are mixed"
        )
    step = (positions[-1] - positions[0]) / (len(stack) - 1)
    sideways = np.linalg.norm(step - (step @ _normal(stack[0])) * _normal(stack[0]))
    if sideways > TILT_TOLERANCE * spacing:
        raise InputError(
            f"its gantry is tilted by {np.degrees(np.arctan2(sideways, spacing)):.1f} degrees: its voxels are sheared"
        )
    even = positions[0] + np.arange(len(stack))[:, None] * step
    if np.linalg.norm(positions - even, axis=1).max() > POSITION_TOLERANCE * spacing:
        raise InputError("its slices do not lie on one straight, even grid")
