"""Frames into series: which belong together, in which order, and how many volumes they are.

Positions and orientations of the frames are the only truth: numbers, times and file names order nothing, except
to tell apart stacks that lie at the same positions.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from n2s_med.errors import InputError
from n2s_med.volumes.contents import FloatArray, Refusal
from n2s_med.volumes.dicom_files import read_whole
from n2s_med.volumes.dicom_pixels import stored_frames
from n2s_med.volumes.frames import Axis, Component, Frame
from n2s_med.volumes.grids import (
    SAME_PLACE_MM,
    affine_of,
    check_directions,
    depth_of,
    even_runs,
    normal_of,
    same_grid,
    tilt_degrees,
)

Stack = tuple[Frame, ...]

KEYS_AT_ONCE = 4
"""How many keys together may be needed to tell stacks apart."""


@dataclass(frozen=True)
class Series:
    """Frames that form one or several stacks on one even grid: a volume (C, X, Y, Z).

    Attributes
    ----------
    stacks
        One tuple of frames per three-dimensional volume, each sorted along the normal.
    names
        What tells each stack from the others, free of patient data; empty for a lone one.
    part
        First and last slice, counted from 1, and their number in the whole, where this is a run of a series
        that is uneven.
    """

    stacks: tuple[Stack, ...]
    names: tuple[str, ...] = ("",)
    part: tuple[int, int, int] | None = None

    @property
    def first(self) -> Frame:
        """The first frame of the first stack."""
        return self.stacks[0][0]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames in the order of (stack, slice)."""
        return tuple(frame for stack in self.stacks for frame in stack)

    @property
    def place(self) -> Path:
        """The file, or the folder of the files."""
        return _place(self.frames)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, X, Y, Z) of the volume."""
        file = self.first.file
        return len(self.stacks), file.columns, file.rows, len(self.stacks[0])

    @property
    def label(self) -> str:
        """E.g. ``"PT series 4, 267 slices of 128x128"``."""
        stacks, columns, rows, slices = self.shape
        several = f"{stacks} volumes of " if stacks > 1 else ""
        what = {Axis.ANGLE: "view", Axis.TIME: "time frame", Axis.NONE: "image"}.get(self.first.axis, "slice")
        counted = f"{slices} {what}{'' if slices == 1 else 's'}"
        if self.part is not None:
            counted = f"slices {self.part[0]} to {self.part[1]} of {self.part[2]},"
        part = "" if self.first.component is Component.MAGNITUDE else f" ({self.first.component} part)"
        return f"{self.first.file.label}{part}, {several}{counted} of {columns}x{rows}"

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4) from voxel indices to RAS mm; the step from slice to slice is the mean one."""
        return affine_of(self.stacks[0])

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of the volume's geometry."""
        return tuple(_notes(self))


def build_series(frames: Iterable[Frame]) -> tuple[list[Series], list[Refusal]]:
    """Return the series that ``frames`` form, and why the other ones are refused."""
    found: list[Series] = []
    refusals: list[Refusal] = []
    for group in _groups(frames):
        try:
            found += _series(group)
        except InputError as error:
            refusals.append(Refusal(_place(group), _group_label(group), error.cause))
    return found, refusals


def _notes(series: Series) -> Iterator[str]:
    first = series.first
    if series.part is not None:
        yield "the series is unevenly spaced: each of its even runs is a volume of its own"
    tilt = tilt_degrees(series.stacks[0])
    if tilt:
        yield f"the gantry is tilted by {tilt:.1f} degrees: worked on in the grid of its slices, not resampled"
    if first.axis is Axis.ANGLE:
        yield "its third axis is the angle of the detector, not a length"
    if first.axis is Axis.TIME:
        yield "its third axis is time, not a length"
    if not first.placed:
        yield "the file does not say where it lies in the patient, or not how large its pixels are"


def _place(group: Sequence[Frame]) -> Path:
    first = group[0].file.path
    return first if all(frame.file.path == first for frame in group) else first.parent


def _group_label(group: Sequence[Frame]) -> str:
    file, count = group[0].file, len(group)
    return f"{file.label}, {count} {'slice' if count == 1 else 'slices'} of {file.columns}x{file.rows}"


def _groups(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group frames of one series, kind, matrix, pixel size, units, frame of reference and orientation.

    A study's UID tells series apart whose own UID is the same, as bad anonymisers leave it. Frames that have no place
    in space belong together within their file alone.
    """
    exact: dict[tuple[object, ...], list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        file = frame.file
        key = (
            file.study_uid, file.series_uid, file.sop_class, file.rows, file.columns, file.frame_of_reference,
            frame.units, frame.stack, frame.component, frame.axis, "" if frame.axis is Axis.SPACE else file.path,
        )  # fmt: skip
        for group in exact[key]:
            if same_grid(group[0], frame):
                group.append(frame)
                break
        else:
            exact[key].append([frame])
    return [group for groups in exact.values() for group in groups]


def _series(group: Sequence[Frame]) -> Iterator[Series]:
    """Yield the series that a group forms: one for each frame type and even run."""
    check_directions(group[0])
    _check_scale(group)
    for series in _by_type(_full_stacks(_by_position(group))):
        runs = even_runs(series.stacks[0])
        if len(runs) == 1:
            yield series
            continue
        for run in runs:
            stacks = tuple(stack[run] for stack in series.stacks)
            yield replace(series, stacks=stacks, part=(run.start + 1, run.stop, len(series.stacks[0])))


def _check_scale(group: Sequence[Frame]) -> None:
    """Refuse frames without a rescale among others that have one: they would be on another scale."""
    if any(f.rescale != (1, 0) for f in group) and not all(f.rescale_stated for f in group):
        raise InputError("only some of its slices say how their values are scaled (Rescale Slope)")


def _by_type(series: Series) -> Iterator[Series]:
    """Yield the stacks of each type of image apart: magnitude and a map made of it are not one quantity."""
    if len(series.stacks) == 1:
        yield series
        return
    types: dict[object, list[int]] = defaultdict(list)
    for index, stack in enumerate(series.stacks):
        kinds = {frame.stack_keys.get("image type") for frame in stack}
        types[kinds.pop() if len(kinds) == 1 else None].append(index)
    for members in types.values():
        yield Series(tuple(series.stacks[i] for i in members), tuple(series.names[i] for i in members))


def _by_position(group: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames of each position, sorted along the normal."""
    normal = normal_of(group[0])
    places: list[list[Frame]] = []
    for frame in sorted(group, key=lambda f: (depth_of(f, normal), f.file.instance_number, f.place)):
        if places and depth_of(frame, normal) - depth_of(places[-1][0], normal) < SAME_PLACE_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    return places


def _full_stacks(places: Sequence[Sequence[Frame]]) -> Series:
    """Return one stack, or several that the headers tell apart; identical copies are dropped."""
    if all(len(place) == 1 for place in places):
        return Series((tuple(place[0] for place in places),))
    once = [_without_copies(place, same_instance=True) for place in places]
    return (
        _keyed_stacks(once)
        or _consecutive_stacks(once)
        or _single_stack([_without_copies(place, same_instance=False) for place in once])
    )


def _without_copies(place: Sequence[Frame], *, same_instance: bool) -> list[Frame]:
    """Drop frames with the pixels and rescale of another one at this place (and its UID, if asked)."""
    if len(place) == 1 or (same_instance and len({frame.identity for frame in place}) == len(place)):
        return list(place)
    kept: dict[tuple[object, ...], Frame] = {}
    for frame in place:
        path = frame.file.path
        (pixels,) = stored_frames(read_whole(path), path, [frame.index])
        kept.setdefault((pixels.tobytes(), frame.rescale, frame.identity if same_instance else ""), frame)
    return list(kept.values())


def _single_stack(places: Sequence[Sequence[Frame]]) -> Series:
    if any(len(place) > 1 for place in places):
        raise InputError("positions are there more than once and nothing tells the stacks apart")
    return Series((tuple(place[0] for place in places),))


def _keyed_stacks(places: Sequence[Sequence[Frame]]) -> Series | None:
    """Return the stacks that the first full set of keys tells apart; ``None`` where no set does."""
    count = len(places[0])
    if any(len(place) != count for place in places):
        return None
    frames = [frame for place in places for frame in place]
    names = [name for name in frames[0].stack_keys if len({f.stack_keys.get(name) for f in frames}) > 1]
    for size in range(1, min(len(names), KEYS_AT_ONCE) + 1):
        for chosen in itertools.combinations(names, size):
            stacks = _split(frames, chosen)
            if len(stacks) == count and all(_is_full(stack, places) for stack in stacks):
                return Series(stacks, tuple(_name(stack[0], chosen, c) for c, stack in enumerate(stacks, start=1)))
    return None


def _is_full(stack: Sequence[Frame], places: Sequence[Sequence[Frame]]) -> bool:
    """Say whether ``stack`` has exactly one frame of each of ``places``, in their order."""
    return len(stack) == len(places) and all(
        any(frame is other for other in place) for frame, place in zip(stack, places, strict=True)
    )


def _split(frames: Sequence[Frame], names: Sequence[str]) -> tuple[Stack, ...]:
    """Return the frames by the values of their keys ``names``; no position twice in a full stack."""
    stacks: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        stacks[tuple(frame.stack_keys[name] for name in names)].append(frame)
    ordered = sorted(stacks.items(), key=lambda item: tuple(map(_sortable, item[0])))
    return tuple(tuple(stack) for _, stack in ordered)


def _sortable(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _name(frame: Frame, keys: Sequence[str], number: int) -> str:
    """Return what tells a stack apart, in words; its number where that is a date or a list of codes."""
    told = [f"{key} {frame.stack_keys[key]:g}" for key in keys if _is_told(key, frame.stack_keys[key])]
    if "diffusion" in keys:
        b_value = frame.stack_keys["diffusion"][0]
        told.append(f"b-value {b_value:g}" if math.isfinite(b_value) else "no b-value")
    return ", ".join(told) or f"volume {number}"


def _is_told(key: str, value: object) -> bool:
    return key != "frame time" and isinstance(value, (int, float)) and math.isfinite(value)


def _consecutive_stacks(places: Sequence[Sequence[Frame]]) -> Series | None:
    """Return the time points of a series that states their number but not which slice has which.

    Its instance numbers must run through all positions once per time point; otherwise there are none.
    """
    frames = sorted((frame for place in places for frame in place), key=lambda f: f.file.instance_number)
    distinct = len({frame.file.instance_number for frame in frames}) == len(frames)
    if not distinct or min(frame.file.time_points for frame in frames) < 2 or len(frames) % len(places):
        return None
    order = {frame.place: depth for depth, place in enumerate(places) for frame in place}
    runs = [frames[start : start + len(places)] for start in range(0, len(frames), len(places))]
    stacks = tuple(tuple(sorted(run, key=lambda f: order[f.place])) for run in runs)
    full = all(_is_full(stack, places) for stack in stacks)
    return Series(stacks, tuple(f"time point {t}" for t in range(1, len(stacks) + 1))) if full else None
