"""A fixed CT-like trunk in Hounsfield units with a known truth, for benchmarks; never a training volume.

Chest above, upper abdomen below. X runs to the left, Y to the back, Z to the head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from n2s_med.phantoms.grids import Grid, band_field, power_law_field
from n2s_med.phantoms.scene import Dice, Scene, grow_tree
from n2s_med.phantoms.solids import ellipsoid, filament, paint, sheet, tube

_SEED = 20_220_619
_FIELD_OF_VIEW_MM = (400.0, 300.0, 240.0)
AIR, LUNG, FAT, WATER, MUSCLE, LIVER, SPLEEN, KIDNEY, BLOOD, SPONGY, CORTICAL = (
    -1000.0, -850.0, -100.0, 5.0, 55.0, 105.0, 115.0, 160.0, 150.0, 220.0, 900.0,
)  # fmt: skip
LESIONS = (  # centre and radius in mm, HU; in the liver
    ((-95.0, -20.0, -60.0), 12.0, 65.0),
    ((-70.0, 25.0, -72.0), 8.0, 75.0),
    ((-110.0, 20.0, -48.0), 6.0, 80.0),
    ((-55.0, -40.0, -66.0), 4.0, 145.0),
    ((-90.0, 5.0, -88.0), 9.0, 8.0),
)


def ct_phantom(shape: tuple[int, int, int] = (128, 96, 77)) -> Tensor:
    """Return the trunk, the same for the same shape.

    Voxels are cubes, 3.1 mm at the default shape: the field of view holds 400 × 300 × 240 mm. It is drawn at
    twice the resolution and averaged.

    Parameters
    ----------
    shape
        Voxels along (X, Y, Z).

    Returns
    -------
    Tensor
        float32 (X, Y, Z), HU, −1000 in air; bone reaches some 1000.
    """
    half = max(side / n for side, n in zip(_FIELD_OF_VIEW_MM, shape, strict=True)) / 2
    grid = Grid((2 * shape[0], 2 * shape[1], 2 * shape[2]), (half, half, half))
    hounsfield: Tensor = avg_pool3d(_draw(grid)[None], 2)[0]
    return hounsfield.clamp_min(AIR)


def _draw(grid: Grid) -> Tensor:
    """Return HU on the fine grid, from the skin inwards."""
    generator = torch.Generator().manual_seed(_SEED)
    scene = Scene(grid, Dice(generator), warp=0.4, softness=grid.step[0])
    grain = power_law_field(grid, generator, 2.4)
    p = scene.points
    body = ellipsoid(p, (0, 0, 0), (172, 118, torch.inf))
    dome = p[2] + 20 + 0.004 * ((p[0].abs() - 75).square() + p[1].square())
    image = _walls(scene, torch.full_like(body, AIR), body, grain)
    image = _chest(scene, image, dome, grain)
    image = _abdomen(scene, image, dome, grain)
    image = _bones(scene, image, body, grain)
    return _table(scene, image)


def _walls(scene: Scene, image: Tensor, body: Tensor, grain: Tensor) -> Tensor:
    """Return skin, fat, muscle with fatty septa, and fat within."""
    fat = 16 + 5 * scene.smooth(110)
    septa = sheet(scene.grid, band_field(scene.grid, scene.dice.generator, 34)).abs() - 0.8
    image = scene.paint(image, body, MUSCLE)
    image = scene.paint(image, body + 2.5, FAT + 4 * grain)
    image = scene.paint(image, body + fat, MUSCLE + 5 * grain)
    image = scene.paint(image, torch.maximum(septa, body + fat + 2), FAT)
    return scene.paint(image, body + fat + 22, FAT + 4 * grain)


def _chest(scene: Scene, image: Tensor, dome: Tensor, grain: Tensor) -> Tensor:
    """Return the image with lungs above the diaphragm, their vessels, heart and aorta."""
    p = scene.points
    lungs = torch.minimum(ellipsoid(p, (-78, 0, 40), (58, 82, 150)), ellipsoid(p, (80, 4, 40), (54, 80, 150)))
    lungs = torch.maximum(lungs, -dome)
    image = scene.paint(image, lungs, LUNG + 12 * grain + 25 * scene.smooth(90))
    inside = image.clone()
    for side, x in ((-1.0, -36.0), (1.0, 38.0)):
        for tilt in (-0.6, 0.1, 0.8):
            heading = torch.tensor([side, 0.4 * tilt, tilt])
            grow_tree(scene, inside, MUSCLE, root=(x, 8, 45), direction=heading, radius=5.5, segments=130)
    threads = filament(scene.grid, scene.smooth(40), scene.smooth(40)) - 0.9
    inside = scene.paint(inside, threads, MUSCLE)
    image = torch.where(lungs < 0, inside, image)
    heart = torch.maximum(ellipsoid(p, (22, -26, 28), (48, 40, 46)), -dome - 8)
    image = scene.paint(image, heart, MUSCLE + 4 * grain)
    for centre, radii in (((34, -24, 22), (24, 22, 26)), ((0, -24, 38), (20, 20, 24))):
        scene.paint_ellipsoid(image, centre, radii, BLOOD)
    scene.paint_tube(image, (4, 10, 62), (0, -12, 130), (9, 8), AIR)
    return image


def _abdomen(scene: Scene, image: Tensor, dome: Tensor, grain: Tensor) -> Tensor:
    """Return the image with liver and lesions, spleen, kidneys, stomach, bowel and great vessels."""
    p = scene.points
    for centre, radii, value in (
        ((-78, -8, -62), (68, 78, 66), LIVER),
        ((-10, -48, -58), (62, 34, 34), LIVER),
        ((98, 42, -58), (28, 38, 40), SPLEEN),
        ((58, 58, -100), (23, 25, 44), KIDNEY),
        ((-60, 60, -104), (23, 25, 44), KIDNEY),
        ((62, -30, -60), (36, 34, 40), WATER + 25),
    ):
        distance = torch.maximum(ellipsoid(p, centre, radii), dome + 4)
        image = scene.paint(image, distance, value + 4 * grain)
    scene.paint_ellipsoid(image, (62, -46, -54), (24, 14, 22), AIR)
    for lesion, radius, value in LESIONS:
        scene.paint_ellipsoid(image, lesion, (radius,) * 3, value + 3 * grain)
    grow_tree(scene, image, BLOOD, root=(-45, 0, -70), direction=torch.tensor([-1.0, 0, 0]), radius=5)
    image = _bowel(scene, image, grain)
    scene.paint_tube(image, (18, 48, 130), (10, 40, -130), (12, 10), BLOOD + 10)
    scene.paint_tube(image, (-22, 34, 10), (-18, 36, -130), (11, 11), BLOOD - 25)
    return image


def _bowel(scene: Scene, image: Tensor, grain: Tensor) -> Tensor:
    """Return the image with winding, walled loops below the stomach, some holding gas."""
    p = scene.points
    room = ellipsoid(p, (20, -40, -125), (95, 48, 34))
    loops = sheet(scene.grid, band_field(scene.grid, scene.dice.generator, 44) - 0.2)
    wall = torch.maximum(room, -loops)
    image = scene.paint(image, wall, MUSCLE + 4 * grain)
    image = scene.paint(image, wall + 3, WATER + 15 + 8 * grain)
    gas = torch.maximum(wall + 3, p[1] + 58)
    return scene.paint(image, gas, AIR)


def _bones(scene: Scene, image: Tensor, body: Tensor, grain: Tensor) -> Tensor:
    """Return the image with ribs, breastbone and spine: dense shells about spongy bone."""
    p = scene.points
    hoops = torch.remainder(p[2] - 0.45 * p[1], 30.0) - 15
    ribs = torch.maximum((body + 32).abs() - 5, hoops.abs() - 5.5)
    ribs = torch.maximum(ribs, -p[2] - 80 - 0.6 * p[1])
    column = ellipsoid(p, (0, 68, 0), (21, 17, torch.inf))
    discs = (torch.remainder(p[2] + 9, 32.0) - 16).abs() - 13
    canal = ellipsoid(p, (0, 92, 0), (10, 8, torch.inf))
    arch = torch.maximum(torch.minimum(canal - 4, tube(p, (0, 98, 0), (0, 112, -10), (4, 3))), discs - 4)
    sternum = torch.maximum(ellipsoid(p, (0, -88, 90), (17, 6, 80)), -p[2] + 5)
    image = scene.paint(image, column + 1, MUSCLE + 35 + 4 * grain)
    for bone, cortex in ((ribs, 1.8), (torch.maximum(column, discs), 1.5), (sternum, 1.6)):
        image = scene.paint(image, bone, CORTICAL + 60 * grain)
        image = scene.paint(image, bone + cortex, SPONGY + 45 * grain)
    image = scene.paint(image, arch, CORTICAL + 40 * grain)
    return scene.paint(image, canal, WATER + 25)


def _table(scene: Scene, image: Tensor) -> Tensor:
    """Return the image with the table's carbon shell behind the back."""
    x, y = scene.grid.points()[:2]
    shell = ((y - 128 + 0.0012 * x.square()).abs() - 1.5).maximum(x.abs() - 190)
    return paint(image, torch.where(image < -900, shell, torch.inf), -250.0, scene.softness)
