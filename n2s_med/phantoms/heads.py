"""Generated heads as MR shows them, cortex folded; 1 mm is one in-plane voxel. Air is 0, tissue up to 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from n2s_med.phantoms.grids import band_field
from n2s_med.phantoms.scene import Scene
from n2s_med.phantoms.scenes import with_vessels
from n2s_med.phantoms.solids import ellipsoid, sheet


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
    wavelength = dice.log_uniform(8, 25)
    field = band_field(scene.grid, scene.dice.generator, wavelength, dice.uniform(0.25, 0.5))
    reach = dice.log_uniform(0.8, 5) * wavelength
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
