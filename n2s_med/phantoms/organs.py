"""Generated scenes with a body plan: heads with folded cortex as MR shows them, trunks as CT does.

Lengths are in mm; one in-plane voxel is 1 mm. Values: air 0, tissue up to about 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.phantoms.grids import band_field
from n2s_med.phantoms.scene import Scene, grow_tree
from n2s_med.phantoms.scenes import with_vessels
from n2s_med.phantoms.solids import ellipsoid, rotated, sheet


@dataclass(frozen=True)
class Contrast:
    """Relative MR signal of the tissues of a head."""

    scalp: float
    skull: float
    marrow: float
    csf: float
    grey: float
    white: float
    nuclei: float
    blood: float


CONTRASTS = (
    Contrast(0.85, 0.06, 0.55, 0.18, 0.50, 0.72, 0.58, 0.15),  # T1
    Contrast(0.50, 0.05, 0.40, 0.95, 0.55, 0.36, 0.45, 0.08),  # T2
    Contrast(0.55, 0.05, 0.45, 0.10, 0.70, 0.52, 0.62, 0.10),  # FLAIR
    Contrast(0.70, 0.08, 0.50, 0.80, 0.74, 0.60, 0.66, 0.20),  # proton density
    Contrast(0.90, 0.05, 0.60, 0.15, 0.45, 0.66, 0.52, 1.00),  # T1 with contrast agent
)


def head(scene: Scene) -> Tensor:
    """A head in MR: scalp, skull, CSF, cortex folded along level sets, ventricles, nuclei, vessels."""
    dice = scene.dice
    radius, mr = dice.log_uniform(0.4, 1.1) * scene.size, dice.pick(CONTRASTS)
    radii = [radius * dice.uniform(0.75, 1) for _ in range(3)]
    towards = dice.uniform(0, 0.9) * radius * dice.direction()
    brain = ellipsoid(scene.points, towards.tolist(), radii)
    image = _coverings(scene, brain, mr)
    _cavities(scene, image, towards, radius, mr)
    image = _folded(scene, image, brain, mr)
    _deep(scene, image, towards, radius, mr)
    return with_vessels(scene, image, mr.blood, 0.5, within=brain)


def _coverings(scene: Scene, brain: Tensor, mr: Contrast) -> Tensor:
    """Return scalp, skull with marrow and CSF about the brain, each as thick as the dice say."""
    dice, image = scene.dice, torch.zeros_like(brain)
    csf, inner, marrow = dice.log_uniform(0.8, 3), dice.uniform(0.6, 2), dice.uniform(0, 3)
    skull = csf + 2 * inner + marrow
    scalp = skull + dice.log_uniform(2, 9) + 0.8 * scene.smooth(25)
    image = scene.paint(image, brain - scalp, scene.material(mr.scalp, 2))
    image = scene.paint(image, brain - skull, mr.skull)
    image = scene.paint(image, (brain - (skull + csf) / 2).abs() - marrow / 2, scene.material(mr.marrow))
    return scene.paint(image, brain - csf, mr.csf)


def _cavities(scene: Scene, image: Tensor, centre: Tensor, radius: float, mr: Contrast) -> None:
    """Paint muscle, fat and air on the outside of the skull, in place, as about a face."""
    dice = scene.dice
    for _ in range(dice.between(0, 8)):
        spot = (centre + dice.uniform(0.95, 1.25) * radius * dice.direction()).tolist()
        radii = [radius * dice.log_uniform(0.04, 0.25) for _ in range(3)]
        value = dice.pick((mr.scalp, 0.6 * mr.grey, mr.csf, mr.skull, 0.0))
        scene.paint_ellipsoid(image, spot, radii, scene.material(value) if value else 0.0)


def _folded(scene: Scene, image: Tensor, brain: Tensor, mr: Contrast) -> Tensor:
    """Return the image with grey and white matter laid over the brain.

    Sulci are the zero sheets of a band-limited field and close with depth; white matter begins one cortical
    thickness from the pial surface, that is from the nearest sulcus or from the brain's border.
    """
    dice = scene.dice
    wavelength = dice.log_uniform(9, 30)
    field = band_field(scene.grid, scene.dice.generator, wavelength, dice.uniform(0.25, 0.5))
    reach = dice.log_uniform(0.6, 3) * wavelength
    closing = (-brain - reach).clamp_min(0)
    sulcus = sheet(scene.grid, field).abs() + closing - dice.uniform(0, 0.05 * wavelength)
    pial = torch.maximum(brain, -sulcus)
    cortex = dice.uniform(0.09, 0.15) * wavelength
    image = scene.paint(image, pial, scene.material(mr.grey))
    return scene.paint(image, pial + cortex, scene.material(mr.white))


def _deep(scene: Scene, image: Tensor, centre: Tensor, radius: float, mr: Contrast) -> None:
    """Paint nuclei and ventricles about the middle of the brain, in place."""
    dice = scene.dice
    for value, grain in ((mr.nuclei, 1.0), (mr.nuclei, 1.0), (mr.csf, 0.2), (mr.csf, 0.2)):
        spot = (centre + 0.25 * radius * dice.direction()).tolist()
        radii = [radius * dice.uniform(0.06, 0.22) for _ in range(3)]
        scene.paint_ellipsoid(image, spot, radii, scene.material(value, grain))


# Hounsfield units
AIR, LUNG, FAT, WATER, MUSCLE, ORGAN, BLOOD, SPONGY, CORTICAL = -1000, -820, -95, 5, 50, 75, 160, 230, 1000


def trunk(scene: Scene) -> Tensor:
    """A trunk in CT: skin, fat, muscle, organs, lungs with vessels, ribs, spine, gas; [0, 1] of its window.

    Half of them are windowed to soft tissue, half keep the range from air to bone.
    """
    dice, size = scene.dice, scene.size
    scene.grain = dice.log_uniform(2, 14)
    turn = dice.rotation() if dice.chance(0.4) else torch.eye(3)
    points = rotated(scene.points, turn)
    centre = scene.place(0.3)
    wide, deep = (dice.log_uniform(0.35, 1) * size for _ in range(2))
    body = ellipsoid(points, centre, (wide, deep, torch.inf))
    image = _wall(scene, torch.full_like(body, AIR), body, points)
    _organs(scene, image, 0.6 * min(wide, deep))
    image = _with_gas(scene, image, body)
    _spine(scene, image, points, centre, deep)
    if dice.chance(0.5):
        grow_tree(
            scene,
            image,
            scene.material(BLOOD, 0.5),
            root=scene.place(0.3),
            direction=dice.direction(),
            radius=dice.uniform(1.5, 6),
        )
    return _windowed(scene, image)


def _wall(scene: Scene, image: Tensor, body: Tensor, points: Tensor) -> Tensor:
    """Return skin, subcutaneous fat, a muscle layer with ribs in it, and visceral fat within."""
    dice = scene.dice
    fat = dice.log_uniform(2, 14) * torch.exp(0.3 * scene.smooth(30))
    muscle = dice.log_uniform(2, 8)
    image = scene.paint(image, body, scene.material(MUSCLE))
    image = scene.paint(image, body + dice.uniform(0.8, 1.6), scene.material(FAT))
    image = scene.paint(image, body + fat, scene.material(MUSCLE, 1.5))
    image = scene.paint(image, body + fat + muscle, scene.material(dice.pick((FAT, MUSCLE, ORGAN))))
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


def _spine(
    scene: Scene, image: Tensor, points: Tensor, centre: tuple[float, float, float], deep: float
) -> None:
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


def _windowed(scene: Scene, image: Tensor) -> Tensor:
    """Return HU as [0, 1] of a soft-tissue window or of the whole range."""
    if scene.dice.chance(0.5):
        low, high = scene.dice.uniform(-220, -120), scene.dice.uniform(180, 350)
    else:
        low, high = float(AIR), scene.dice.uniform(500, 1500)
    return ((image - low) / (high - low)).clamp(0, 1)
