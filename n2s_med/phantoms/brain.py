"""A fixed brain-MR-like volume with a known truth, for benchmarks; never a training volume.

It shares only the drawing tools with the generated training heads: the anatomy, its proportions in mm and its
seed are its own. X runs to the left, Y to the back, Z to the head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from n2s_med.phantoms.grids import Grid, band_field, power_law_field
from n2s_med.phantoms.scene import Dice, Scene
from n2s_med.phantoms.solids import ellipsoid, filament, sheet, tube

_SEED = 20_210_607
_FIELD_OF_VIEW_MM = (160.0, 192.0, 160.0)
_FLOOR = 0.02
SCALP, MUSCLE, SKULL, MARROW, BLOOD = 0.78, 0.34, 0.04, 0.5, 0.95
CSF, GREY, WHITE, NUCLEI = 0.14, 0.47, 0.7, 0.58
_CORTEX_MM, _FOLD_MM, _FOLIUM_MM = 2.8, 19.0, 8.0


def brain_phantom(shape: tuple[int, int, int] = (80, 96, 80)) -> Tensor:
    """Return the brain: T1-like, sharp, the same for the same shape.

    The head fills the volume: voxels are cubes of 2 mm at the default shape, and the finer, the larger it is.
    It is drawn at twice the resolution and averaged, so that edges have the partial volume of a scan.

    Parameters
    ----------
    shape
        Voxels along (X, Y, Z).

    Returns
    -------
    Tensor
        float32 (X, Y, Z) from 0.02, in air, to 1; no unit.
    """
    voxel = max(side / n for side, n in zip(_FIELD_OF_VIEW_MM, shape, strict=True))
    half = voxel / 2
    grid = Grid((2 * shape[0], 2 * shape[1], 2 * shape[2]), (half, half, half))
    signal: Tensor = avg_pool3d(_draw(grid)[None], 2)[0]
    return _FLOOR + (1 - _FLOOR) * (signal / signal.max()).clamp(0, 1)


def _draw(grid: Grid) -> Tensor:
    """Return the signal on the fine grid, from the scalp inwards."""
    generator = torch.Generator().manual_seed(_SEED)
    scene = Scene(grid, Dice(generator), warp=0.35, softness=grid.step[0])
    grain = 0.012 * power_law_field(grid, generator, 2.6)
    p = scene.points
    cerebrum = ellipsoid(p, (0, 0, 8), (62, 78, 56))
    cerebellum = ellipsoid(p, (0, 42, -46), (45, 26, 22))
    stem = tube(p, (0, 12, -25), (0, 22, -100), (13, 9))
    brain = cerebrum.minimum(cerebellum).minimum(stem)
    image = _coverings(scene, brain, grain)
    image = _folded(scene, image, cerebrum, _sulci(scene, cerebrum), _CORTEX_MM)
    folia = sheet(grid, band_field(grid, generator, _FOLIUM_MM, 0.3)).abs()
    image = _folded(scene, image, cerebellum + 1, folia, 1.3)
    image = scene.paint(image, stem, WHITE)
    _deep(scene, image)
    image = _vessels(scene, image, brain)
    return image + grain * (image > SKULL) + 0.02 * image * scene.smooth(120)


def _coverings(scene: Scene, brain: Tensor, grain: Tensor) -> Tensor:
    """Return scalp, face, skull with marrow and CSF, over air."""
    p = scene.points
    image = torch.zeros_like(brain)
    vault = ellipsoid(p, (0, 0, 4), (66, 82, 62))
    neck = ellipsoid(p, (0, 18, 0), (50, 52, torch.inf)).maximum(p[2] + 20)
    face = ellipsoid(p, (0, -42, -58), (46, 44, 48))
    image = scene.paint(image, (vault - 11).minimum(neck - 4).minimum(face - 4), SCALP + 4 * grain)
    image = scene.paint(image, neck.minimum(face).minimum(vault - 6), MUSCLE + 4 * grain)
    image = scene.paint(image, vault.abs() - 7, SKULL)
    image = scene.paint(image, (vault - 4.5).abs() - 1.2, MARROW + 6 * grain)
    for side in (-1, 1):
        scene.paint_ellipsoid(image, (30 * side, -68, -36), (12, 12, 12), CSF)
        scene.paint_ellipsoid(image, (9 * side, -64, -56), (6, 16, 9), 0.0)
    return scene.paint(scene.paint(image, brain - 6, SKULL), brain - 3, CSF)


def _sulci(scene: Scene, cerebrum: Tensor) -> Tensor:
    """Return the distance to the nearest sulcus: winding sheets that close with depth, and the midline."""
    field = band_field(scene.grid, scene.dice.generator, _FOLD_MM, 0.4)
    sulcus = sheet(scene.grid, field).abs() + (-cerebrum - 32).clamp_min(0)
    midline = scene.points[0].abs() + (-cerebrum - 30).clamp_min(0)
    return sulcus.minimum(midline) - (0.6 + 0.25 * scene.smooth(40)).clamp_min(0.1)


def _folded(scene: Scene, image: Tensor, whole: Tensor, sulcus: Tensor, cortex: float) -> Tensor:
    """Return the image with cortex of this thickness (mm) over white matter, cut by sulci."""
    pial = whole.maximum(-sulcus)
    return scene.paint(scene.paint(image, pial, GREY), pial + cortex, WHITE)


def _deep(scene: Scene, image: Tensor) -> None:
    """Paint callosum, nuclei, ventricles and a ring-enhancing lesion, in place."""
    scene.paint_tube(image, (0, -24, 20), (0, 26, 22), (5, 6), WHITE)
    for side in (-1, 1):
        scene.paint_ellipsoid(image, (23 * side, -4, 6), (6, 16, 10), NUCLEI)
        scene.paint_ellipsoid(image, (10 * side, 10, 6), (8, 14, 9), NUCLEI - 0.03)
        scene.paint_tube(image, (13 * side, -26, 13), (16 * side, 12, 22), (6, 2.5), GREY)
        scene.paint_tube(image, (7 * side, -24, 16), (11 * side, 12, 20), (3.5, 3), CSF)
        scene.paint_tube(image, (11 * side, 12, 20), (22 * side, 34, 8), (3, 4.5), CSF)
        scene.paint_tube(image, (22 * side, 34, 8), (30 * side, 6, -16), (3, 1.5), CSF)
    scene.paint_ellipsoid(image, (0, 8, 2), (1.5, 13, 8), CSF)
    scene.paint_ellipsoid(image, (0, 26, -40), (5, 3.5, 9), CSF)
    scene.paint_ellipsoid(image, (-30, 22, 28), (5, 4, 5), BLOOD)
    scene.paint_ellipsoid(image, (-30, 22, 28), (2.6, 2, 2.8), CSF)


def _vessels(scene: Scene, image: Tensor, brain: Tensor) -> Tensor:
    """Return the image with bright threads near the surface of the brain."""
    threads = filament(scene.grid, scene.smooth(38), scene.smooth(38)) - 0.8
    return scene.paint(image, threads.maximum(brain.abs() - 9), BLOOD)
