"""Pictures of one volume before and after: three planes, the difference and, if given, the SD map.

Orientation. With an affine (RAS+ millimetres, as MetaTensor and NIfTI carry) planes are axial, coronal and
sagittal in radiological convention: the patient's right on the left, anterior or superior up, the sagittal
seen from the patient's left; the letters on the edges are the nearest anatomical directions. Without an
affine nothing is known of the patient: planes are named by their array axes (x to the right, y down, z up)
and carry no letters.

Figures are built with matplotlib's objects, never through ``pyplot``: no global state, any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Array = NDArray[np.floating[Any]]

_INK, _PAPER, _NOT_FINITE = "#c9d1d9", "#0b0e12", "#6b3f73"
_DIVERGING = LinearSegmentedColormap.from_list("removed", ["#5cc8ff", "#1b4f72", "#0b0e12", "#7a4a12", "#ffb454"])
_COLUMN, _TALLEST, _GAP, _HEADING, _MARGIN, _FOOT = 3.0, 4.2, 0.14, 0.27, 0.16, 0.66  # inches
_LOW = 0.6  # inches: a picture lower than this has no room for writing
_SAMPLES_PER_AXIS = 96  # percentiles and the slice of interest are found on a grid no finer than this
_DPI = 150


@dataclass(frozen=True)
class _Plane:
    """A plane of the display volume: the axis it cuts, its column and row axis, its edge letters."""

    name: str
    cut: int
    columns: int
    rows: int
    letters: str  # left, right, top, bottom


_ANATOMICAL = (
    _Plane("Axial", 2, 0, 1, "RLAP"),
    _Plane("Coronal", 1, 0, 2, "RLSI"),
    _Plane("Sagittal", 0, 1, 2, "APSI"),
)
_BY_AXIS = (_Plane("x–y", 2, 0, 1, ""), _Plane("x–z", 1, 0, 2, ""), _Plane("y–z", 0, 1, 2, ""))
_AS_STORED = np.array([[0, -1], [1, -1], [2, 1]])


@dataclass(frozen=True)
class _Column:
    """One column of the figure: a volume in display orientation and how to show it."""

    title: str
    volume: Array
    minus: Array | None
    window: tuple[float, float]
    colours: Colormap


def planes(
    before: Tensor,
    after: Tensor,
    *,
    spacing_mm: tuple[float, float, float],
    units: str,
    window: tuple[float, float] | None = None,
    sd: Tensor | None = None,
    affine: Tensor | Array | None = None,
) -> tuple[Figure, tuple[int, int, int]]:
    """Draw the planes through the slice of interest; return the figure and the voxel that all planes share.

    Parameters
    ----------
    before, after
        (X, Y, Z) float volumes in ``units``. Voxels that are not finite are drawn in a colour of their own.
    spacing_mm
        Distance of neighbouring voxels along each array axis.
    window
        (low, high) shown as black and white; ``None``, or a window that the scan lies outside of, takes
        robust percentiles of ``after``.
    sd
        (X, Y, Z) standard deviation map in ``units``.
    affine
        (4, 4) voxel to RAS+ millimetres; ``None`` where the patient's position is unknown.
    """
    _check(before, after, sd, spacing_mm)
    stored = [_array(volume) for volume in (before, after, *(() if sd is None else (sd,)))]
    voxel = _voxel_of_interest(stored[1], window)
    turn = _AS_STORED if affine is None else io_orientation(_array(torch.as_tensor(affine)))
    shown = [apply_orientation(volume, turn) for volume in stored]
    centre, spacing = _turned(voxel, spacing_mm, stored[0].shape, turn)
    kinds = _worth_showing(_BY_AXIS if affine is None else _ANATOMICAL, shown[0].shape)
    return _draw(_columns(shown, window), kinds, centre, spacing, units), voxel


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG, free of creation time and software names."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _check(before: Tensor, after: Tensor, sd: Tensor | None, spacing_mm: Sequence[float]) -> None:
    for name, volume in (("before", before), ("after", after), ("sd", sd)):
        if volume is not None and (volume.ndim != 3 or volume.shape != before.shape or volume.numel() == 0):
            raise ValueError(
                f"{name} must be a (X, Y, Z) volume of before's shape, {tuple(before.shape)}, got {tuple(volume.shape)}"
            )
    if len(spacing_mm) != 3 or not all(0 < step < np.inf for step in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive lengths, got {tuple(spacing_mm)}")


def _array(tensor: Tensor) -> Array:
    plain = tensor.detach().as_subclass(Tensor).cpu()
    array: Array = (plain if plain.dtype.itemsize >= 4 else plain.float()).numpy()
    return array


# --- What to show ------------------------------------------------------------------------------------------


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-size // _SAMPLES_PER_AXIS) for size in shape)


def _coarse(volume: Array) -> Array:
    return _known(volume[tuple(slice(None, None, step) for step in _strides(volume.shape))])


def _known(values: Array) -> Array:
    """Return float64 with NaN for all that is not finite: infinities have no difference."""
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def _percentiles(values: Array, *percents: float) -> tuple[float, ...]:
    finite = values[np.isfinite(values)]
    return tuple(np.percentile(finite, percents).tolist()) if finite.size else tuple(0.0 for _ in percents)


def _voxel_of_interest(volume: Array, window: tuple[float, float] | None) -> tuple[int, int, int]:
    """Return the centre of mass of the largest bright region, or the middle where nothing stands out.

    Bright is what lies above half the way from the median to the brightest voxels, after a light smoothing.
    """
    coarse = _coarse(volume)
    low, high = _percentiles(coarse, 0, 100)
    filled = np.clip(np.where(np.isfinite(coarse), coarse, low), *(window or (low, high)))
    smooth = ndimage.uniform_filter(filled, size=3, mode="nearest")
    middle, top = np.percentile(smooth, (50, 99.8))
    labels, count = ndimage.label(smooth > (middle + top) / 2)
    if count == 0:
        return tuple(size // 2 for size in volume.shape)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    centre = ndimage.center_of_mass(labels == largest)
    steps = _strides(volume.shape)
    return tuple(min(round(c * s), n - 1) for c, s, n in zip(centre, steps, volume.shape, strict=True))


def _window(volume: Array, window: tuple[float, float] | None) -> tuple[float, float]:
    coarse = _coarse(volume)
    if window is not None and np.mean((coarse > window[0]) & (coarse < window[1])) >= 0.01:
        return window
    low, high = _percentiles(coarse, 0.5, 99.8)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _columns(shown: Sequence[Array], window: tuple[float, float] | None) -> Iterator[_Column]:
    before, after, *rest = shown
    common = _window(after, window)
    (largest,) = _percentiles(np.abs(_coarse(before) - _coarse(after)), 99.5)
    reach = largest or 1.0
    yield _Column("Before", before, None, common, colormaps["gray"])
    yield _Column("After", after, None, common, colormaps["gray"])
    yield _Column("Removed: before − after", before, after, (-reach, reach), _DIVERGING)
    for sd in rest:
        (most,) = _percentiles(_coarse(sd), 99.5)
        yield _Column("Standard deviation", sd, None, (0.0, most or 1.0), colormaps["inferno"])


def _turned(
    voxel: Sequence[int], spacing_mm: Sequence[float], shape: Sequence[int], turn: NDArray[Any]
) -> tuple[list[int], list[float]]:
    """Return voxel index and spacing along the axes of the display volume."""
    centre, spacing = [0, 0, 0], [1.0, 1.0, 1.0]
    for source, (target, direction) in enumerate(turn):
        flipped = shape[source] - 1 - voxel[source]
        centre[int(target)] = voxel[source] if direction > 0 else flipped
        spacing[int(target)] = spacing_mm[source]
    return centre, spacing


def _worth_showing(kinds: Sequence[_Plane], shape: Sequence[int]) -> list[_Plane]:
    return [k for k in kinds if shape[k.columns] > 1 and shape[k.rows] > 1] or [kinds[0]]


def _cut(volume: Array, plane: _Plane, index: int) -> Array:
    """Return the plane as an image: rows from the top, columns from the left, both against the axes."""
    place: tuple[Any, ...] = (*(slice(None),) * plane.cut, index)  # np.take would copy the volume
    return _known(volume[place]).T[::-1, ::-1]


# --- Drawing -----------------------------------------------------------------------------------------------


def _draw(
    columns: Iterator[_Column],
    kinds: Sequence[_Plane],
    centre: Sequence[int],
    spacing: Sequence[float],
    units: str,
) -> Figure:
    told = list(columns)
    sizes = [_size_inches(plane, told[0].volume.shape, spacing) for plane in kinds]
    width = 2 * _MARGIN + len(told) * _COLUMN + (len(told) - 1) * _GAP
    height = _MARGIN + _HEADING + _FOOT + sum(h + _HEADING for _, h in sizes)
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    for number, column in enumerate(told):
        left = _MARGIN + number * (_COLUMN + _GAP)
        _write(figure, left + _COLUMN / 2, height - 0.3, column.title, size=10.5, weight="bold", ha="center")
        top = height - _MARGIN - _HEADING
        for plane, (w, h) in zip(kinds, sizes, strict=True):
            if number == 0:
                many = column.volume.shape[plane.cut]
                _write(figure, left, top - 0.2, f"{plane.name}  {_where(centre[plane.cut], many)}")
            top -= _HEADING + h
            axes = _axes(figure, left + (_COLUMN - w) / 2, top, w, h)
            image = _show(axes, column, plane, centre, spacing)
            if h >= _LOW:
                _letters(axes, plane)
            if h >= _LOW and number == 0:
                _scale_bar(axes)
        _colour_bar(figure, image, left, column, units)
    return figure


def _where(index: int, many: int) -> str:
    return f"{index + 1} / {many}" if many > 1 else ""


def _size_inches(plane: _Plane, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
    """Return the largest width and height with the plane's own aspect that fit the cell."""
    w_mm = shape[plane.columns] * spacing[plane.columns]
    h_mm = shape[plane.rows] * spacing[plane.rows]
    scale = min(_COLUMN / w_mm, _TALLEST / h_mm)
    return max(w_mm * scale, 0.04), max(h_mm * scale, 0.04)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axes.set_axis_off()
    return axes


def _write(figure: Figure, x: float, y: float, text: str, *, size: float = 8.5, **style: Any) -> None:
    w, h = figure.get_size_inches()
    figure.text(x / w, y / h, text, color=_INK, fontsize=size, **style)


def _show(axes: Axes, column: _Column, plane: _Plane, centre: Sequence[int], spacing: Sequence[float]) -> Any:
    image = _cut(column.volume, plane, centre[plane.cut])
    if column.minus is not None:
        image = image - _cut(column.minus, plane, centre[plane.cut])
    rows, columns = image.shape
    extent = (0.0, columns * spacing[plane.columns], rows * spacing[plane.rows], 0.0)
    low, high = column.window
    shown = axes.get_window_extent()
    enlarged = shown.width >= columns and shown.height >= rows
    return axes.imshow(
        np.ma.masked_invalid(image),
        cmap=column.colours.with_extremes(bad=_NOT_FINITE),
        vmin=low,
        vmax=high,
        extent=extent,
        aspect="auto",
        interpolation="nearest" if enlarged else "antialiased",
    )


_HALO = withStroke(linewidth=1.8, foreground="black")
_EDGES = (
    (0.015, 0.5, "left", "center"),
    (0.985, 0.5, "right", "center"),
    (0.5, 0.985, "center", "top"),
    (0.5, 0.015, "center", "bottom"),
)


def _letters(axes: Axes, plane: _Plane) -> None:
    """Write where the patient's right, left, front and so on lie."""
    for letter, (x, y, ha, va) in zip(plane.letters, _EDGES, strict=False):
        text = axes.text(x, y, letter, transform=axes.transAxes, color="#ffd866", fontsize=8, ha=ha, va=va)
        text.set_path_effects([_HALO])


def _scale_bar(axes: Axes) -> None:
    """Draw a round length, at most a third of the width, at the lower right."""
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    lengths = [f * 10.0**e for e in range(-3, 4) for f in (1, 2, 5) if f * 10.0**e <= width / 3]
    if not lengths:
        return
    x, y, length = 0.96 * width, 0.955 * height, lengths[-1]
    bar = axes.plot([x - length, x], [y, y], color=_INK, linewidth=1.6, solid_capstyle="butt")[0]
    text = axes.text(x - length / 2, y - 0.012 * height, f"{length:g} mm", color=_INK, fontsize=7, ha="center")
    for drawn in (bar, text):
        drawn.set_path_effects([_HALO])


def _colour_bar(figure: Figure, image: Any, left: float, column: _Column, units: str) -> None:
    axes = _axes(figure, left + 0.2, 0.46, _COLUMN - 0.4, 0.09)
    axes.set_axis_on()
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", extend="neither")
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(nbins=4, symmetric=column.minus is not None)
    axes.tick_params(colors=_INK, labelsize=7.5, length=2, pad=2)
    axes.ticklabel_format(useMathText=True, scilimits=(-2, 4))
    axes.xaxis.get_offset_text().set(color=_INK, fontsize=7)
    axes.set_xlabel(units, color=_INK, fontsize=7.5, labelpad=1)
