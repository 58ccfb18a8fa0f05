"""Generated trunks and limbs as CT and MR show them; 1 mm is one in-plane voxel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from n2s_med.phantoms.grids import band_field
from n2s_med.phantoms.scene import Scene, grow_tree
from n2s_med.phantoms.solids import ellipsoid, rotated, sheet

# Hounsfield units
AIR, LUNG, FAT, WATER, MUSCLE, ORGAN, BLOOD, SPONGY, CORTICAL = -1000, -820, -95, 5, 50, 75, 160, 230, 1000
TISSUES = (AIR, LUNG, FAT, WATER, MUSCLE, ORGAN, BLOOD, SPONGY, CORTICAL)


def trunk(scene: Scene) -> Tensor:
    """A trunk or limb in CT; half are windowed to soft tissue, half keep the range from air to bone."""
    scene.grain = scene.dice.log_uniform(2, 14)
    hounsfield = _body(scene)
    if scene.dice.chance(0.5):
        low, high = scene.dice.uniform(-220, -120), scene.dice.uniform(180, 350)
    else:
        low, high = float(AIR), scene.dice.uniform(500, 1500)
    return ((hounsfield - low) / (high - low)).clamp(0, 1)


def trunk_mr(scene: Scene) -> Tensor:
    """The same anatomy in MR: HU looked up in a random table of signals, dark for dense bone and air."""
    dice = scene.dice
    scene.grain = dice.log_uniform(1, 6)
    fat, water, muscle, blood = (
        dice.uniform(0.2, 1),
        dice.uniform(0.1, 1),
        dice.uniform(0.2, 0.6),
        dice.uniform(),
    )
    organ = muscle + dice.uniform(-0.15, 0.3)
    signals = (0.0, 0.05, fat, water, muscle, organ, blood, 0.8 * fat, 0.03)
    return _looked_up(_body(scene), TISSUES, signals)


def _looked_up(values: Tensor, nodes: Sequence[float], outputs: Sequence[float]) -> Tensor:
    """Return the outputs at the nodes, joined by straight lines and constant beyond the ends."""
    x, y = (torch.tensor(t, dtype=values.dtype, device=values.device) for t in (nodes, outputs))
    right = torch.bucketize(values, x).clamp(1, len(nodes) - 1)
    share = ((values - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return y[right - 1] + share * (y[right] - y[right - 1])


def _body(scene: Scene) -> Tensor:
    """Return HU: skin, fat, muscle, organs, lungs with vessels, ribs, spine, gas, marrow bones."""
    dice, size = scene.dice, scene.size
    points = rotated(scene.points, dice.rotation() if dice.chance(0.4) else torch.eye(3))
    centre = scene.place(0.3)
    wide, deep = (dice.log_uniform(0.35, 1) * size for _ in range(2))
    body = ellipsoid(points, centre, (wide, deep, torch.inf))
    image = _wall(scene, torch.full_like(body, AIR), body, points)
    if dice.chance(0.75):
        _organs(scene, image, 0.6 * min(wide, deep))
        image = _with_gas(scene, image, body)
        _spine(scene, image, points, centre, deep)
    else:
        image = _long_bone(scene, image, points)
    if dice.chance(0.5):
        blood, flow, radius = scene.material(BLOOD, 0.5), dice.direction(), dice.uniform(1.5, 6)
        grow_tree(scene, image, blood, root=scene.place(0.3), direction=flow, radius=radius)
    return image


def _long_bone(scene: Scene, image: Tensor, points: Tensor) -> Tensor:
    """Return the image with the shaft of a long bone along the trunk's axis, its marrow fat."""
    dice, centre = scene.dice, scene.place(0.25)
    shaft = ellipsoid(points, centre, (*(dice.uniform(0.07, 0.2) * scene.size for _ in range(2)), torch.inf))
    image = scene.paint(image, shaft, scene.material(CORTICAL))
    return scene.paint(image, shaft + dice.log_uniform(1.2, 5), scene.material(FAT, 2))


def _wall(scene: Scene, image: Tensor, body: Tensor, points: Tensor) -> Tensor:
    """Return skin, fat, a muscle layer with ribs in it, the filling within, and fatty fascia through both."""
    dice = scene.dice
    fat = dice.log_uniform(2, 14) * torch.exp(0.3 * scene.smooth(30))
    muscle = dice.log_uniform(2, 8)
    image = scene.paint(image, body, scene.material(MUSCLE))
    image = scene.paint(image, body + dice.uniform(0.8, 1.6), scene.material(FAT))
    image = scene.paint(image, body + fat, scene.material(MUSCLE, 1.5))
    image = scene.paint(image, body + fat + muscle, scene.material(dice.pick((FAT, MUSCLE, ORGAN))))
    if dice.chance(0.5):
        field = band_field(scene.grid, dice.generator, dice.log_uniform(12, 40))
        fascia = sheet(scene.grid, field).abs() - dice.log_uniform(0.15, 0.9)
        image = scene.paint(image, torch.maximum(fascia, body + fat + 1), FAT)
    if dice.chance(0.6):
        rib = _ribs(scene, body + fat + muscle / 2, points)
        image = scene.paint(image, rib, scene.material(CORTICAL, 3))
        image = scene.paint(image, rib + dice.uniform(0.8, 1.6), scene.material(SPONGY, 4))
    return image


def _ribs(scene: Scene, layer: Tensor, points: Tensor) -> Tensor:
    """Return the distance to hoops in the layer, a pitch apart along the trunk and slanting forwards."""
    dice = scene.dice
    pitch, slant, thick = dice.log_uniform(10, 30), dice.uniform(-0.5, 0.5), dice.uniform(1, 3)
    phase = torch.remainder(points[2] + slant * points[1] + dice.uniform(0, pitch), pitch) - pitch / 2
    return torch.maximum(layer.abs() - thick, phase.abs() - dice.uniform(0.12, 0.25) * pitch)


def _organs(scene: Scene, image: Tensor, reach: float) -> None:
    """Paint organs, some with lesions and some of them lungs, in place."""
    dice = scene.dice
    for _ in range(dice.between(4, 18)):
        centre = scene.place(0.4)
        radii = [dice.log_uniform(0.12, 0.7) * reach for _ in range(3)]
        hounsfield = dice.pick((LUNG, WATER, MUSCLE, ORGAN, ORGAN + 40, BLOOD))
        scene.paint_ellipsoid(image, centre, radii, scene.material(hounsfield))
        for _ in range(dice.between(0, 4) if hounsfield != LUNG else 0):
            spot = [c + 0.5 * r * dice.uniform(-1, 1) for c, r in zip(centre, radii, strict=True)]
            small = [dice.log_uniform(1.2, 6) for _ in range(3)]
            scene.paint_ellipsoid(image, spot, small, scene.material(hounsfield + dice.uniform(-60, 60)))
        if hounsfield == LUNG:
            blood, flow = scene.material(MUSCLE), dice.direction()
            grow_tree(scene, image, blood, root=centre, direction=flow, radius=dice.uniform(1.5, 4))


def _with_gas(scene: Scene, image: Tensor, body: Tensor) -> Tensor:
    """Return the image with pockets of gas, walled by muscle, in the depth of some trunks."""
    if not scene.dice.chance(0.4):
        return image
    field = scene.smooth(scene.dice.uniform(14, 40)) - scene.dice.uniform(1.2, 2.2)
    pocket = torch.maximum(-sheet(scene.grid, field), body + 12)
    image = scene.paint(image, pocket - 1.5, scene.material(MUSCLE))
    return scene.paint(image, pocket, AIR)


def _spine(scene: Scene, image: Tensor, points: Tensor, centre: tuple[float, float, float], deep: float) -> None:
    """Paint a column of vertebrae with discs and the canal, in place."""
    dice = scene.dice
    radius = dice.uniform(0.12, 0.28) * deep
    at = (centre[0], centre[1] + 0.5 * deep, 0)
    column = ellipsoid(points, at, (1.3 * radius, radius, torch.inf))
    pitch = dice.uniform(1, 1.8) * radius
    gap = torch.remainder(points[2] + dice.uniform(0, pitch), pitch) - pitch / 2
    bone = torch.maximum(column, gap.abs() - dice.uniform(0.38, 0.46) * pitch)
    canal = ellipsoid(points, (at[0], at[1] + 1.4 * radius, 0), (0.6 * radius, 0.5 * radius, torch.inf))
    for distance, hounsfield, grain in (
        (column, ORGAN, 1.0),
        (canal - 1.5, CORTICAL, 3.0),
        (bone, CORTICAL, 3.0),
        (bone + dice.uniform(0.8, 1.6), SPONGY, 5.0),
        (canal, WATER, 1.0),
    ):
        image.copy_(scene.paint(image, distance, scene.material(hounsfield, grain)))
