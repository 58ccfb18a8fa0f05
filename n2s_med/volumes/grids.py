"""Even grids: places of slices, runs of even spacing, and the affine of a stack.

Nothing is resampled. A tilted gantry shears the grid, which an affine holds exactly; where the spacing changes or
a slice is missing, the stack falls into runs that are even each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n2s_med.errors import InputError
from n2s_med.volumes.contents import FloatArray
from n2s_med.volumes.frames import Frame
from n2s_med.volumes.limits import SMALLEST_MM

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference of direction cosines within a series."""
SPACING_TOLERANCE = 0.05
"""Largest relative deviation of a gap from the median gap; PET tables jitter by up to 3 %."""
POSITION_TOLERANCE = 0.1
"""Largest distance of a slice from its place on the regular grid, in units of the spacing."""
TILT_TOLERANCE = 5e-3
"""Largest sideways step from slice to slice that is no tilt, in units of the spacing."""
STRAIGHT_TOLERANCE = 0.02
"""Largest difference between the slants of two runs, as sideways step per step."""
SAME_PLACE_MM = 1e-3
"""Slices closer than this lie at the same position."""
SLICES_PER_RUN = 3
"""Slices of the average run, at least: what falls into smaller pieces is no scan of a volume."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(stack: Sequence[Frame]) -> FloatArray:
    """Return the affine (4, 4) of a sorted stack, from voxel indices to RAS mm (DICOM PS3.3 C.7.6.2.1.1).

    The step from slice to slice is the mean one.
    """
    first, last = stack[0], stack[-1]
    between_rows, between_columns = first.spacing_mm
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row_direction) * between_columns
    lps[:3, 1] = np.array(first.column_direction) * between_rows
    if len(stack) > 1:
        lps[:3, 2] = (np.array(last.position_mm) - np.array(first.position_mm)) / (len(stack) - 1)
    else:
        lps[:3, 2] = normal_of(first) * first.thickness_mm
    lps[:3, 3] = first.position_mm
    affine: FloatArray = _LPS_TO_RAS @ lps
    return affine


def normal_of(frame: Frame) -> FloatArray:
    """Return the direction across the plane of ``frame``, in LPS."""
    normal: FloatArray = np.cross(frame.row_direction, frame.column_direction)
    return normal


def depth_of(frame: Frame, normal: FloatArray) -> float:
    """Return the place of ``frame`` along ``normal`` in mm."""
    return float(np.array(frame.position_mm) @ normal)


def same_grid(a: Frame, b: Frame) -> bool:
    """Say whether two frames have the same directions and pixel sizes."""
    directions_a, directions_b = (np.array(f.row_direction + f.column_direction) for f in (a, b))
    same_directions = np.abs(directions_a - directions_b).max() <= ORIENTATION_TOLERANCE
    return bool(same_directions and np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3))


def check_directions(frame: Frame) -> None:
    """Refuse directions that are not perpendicular, and pixels without a size."""
    row, column = np.array(frame.row_direction), np.array(frame.column_direction)
    gram = np.array([row @ row - 1, column @ column - 1, row @ column])
    if np.abs(gram).max() > 1e-2:
        raise InputError("Image Orientation (Patient) is not a pair of perpendicular directions")
    if min(frame.spacing_mm) < SMALLEST_MM:
        raise InputError("Pixel Spacing is not positive")


def tilt_degrees(stack: Sequence[Frame]) -> float:
    """Return the angle between the line of the slices and their normal; 0 where it is no more than jitter."""
    if len(stack) < 2:
        return 0.0
    normal = normal_of(stack[0])
    step = np.array(stack[-1].position_mm) - np.array(stack[0].position_mm)
    across = float(step @ normal)
    sideways = float(np.linalg.norm(step - across * normal))
    return float(np.degrees(np.arctan2(sideways, across))) if sideways > TILT_TOLERANCE * across else 0.0


def even_runs(stack: Sequence[Frame]) -> tuple[slice, ...]:
    """Return the runs of even spacing that a sorted stack falls into; one, for most.

    Raises
    ------
    InputError
        The slices lie so unevenly that there are hardly any runs.
    """
    positions, normal = np.array([frame.position_mm for frame in stack]), normal_of(stack[0])
    if is_even(positions, normal):
        return (slice(0, len(stack)),)
    runs, gaps = _runs(positions, normal), np.diff(positions @ normal)
    if not _is_straight([positions[run] for run in runs], normal):
        raise InputError("its slices do not lie on one straight, even grid")
    if len(runs) * SLICES_PER_RUN > len(stack):
        raise InputError(
            f"its slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm) and form no volume: slices "
            "are missing, or several stacks are mixed"
        )
    return runs


def is_even(positions: FloatArray, normal: FloatArray) -> bool:
    """Say whether sorted ``positions`` (slices, 3) lie on one straight, even grid."""
    if len(positions) < 2:
        return True
    gaps = np.diff(positions @ normal)
    spacing = float(np.median(gaps))
    if np.abs(gaps / spacing - 1).max() > SPACING_TOLERANCE:
        return False
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    return bool(np.linalg.norm(positions - even, axis=1).max() <= POSITION_TOLERANCE * spacing)


def _runs(positions: FloatArray, normal: FloatArray) -> tuple[slice, ...]:
    """Return the even runs, each as long as can be; of two slices, one goes to the next run if it is nearer to it."""
    runs, start = [], 0
    while start < len(positions):
        stop = start + 1
        while stop < len(positions) and is_even(positions[start : stop + 1], normal):
            stop += 1
        if stop - start == 2 and stop < len(positions):
            gaps = np.diff(positions[start : stop + 1] @ normal)
            stop -= int(gaps[1] < gaps[0])
        runs.append(slice(start, stop))
        start = stop
    return tuple(runs)


def _is_straight(runs: Sequence[FloatArray], normal: FloatArray) -> bool:
    """Say whether the lines of all runs are parallel."""
    steps = [run[-1] - run[0] for run in runs if len(run) > 1]
    slants = np.array([step / (step @ normal) for step in steps])
    return not steps or bool(np.linalg.norm(slants - slants[0], axis=1).max() <= STRAIGHT_TOLERANCE)
