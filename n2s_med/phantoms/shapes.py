"""Generated volumes to pre-train a denoiser on: no patient, no end of them, all from one generator.

A scene is drawn on a fine grid, then seen as a scanner sees it: thick slices, partial volume, zero filling,
shading and a display curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError
from n2s_med.phantoms.grids import Grid, gaussian_blur, smooth_field
from n2s_med.phantoms.heads import head
from n2s_med.phantoms.scene import Dice, Scene
from n2s_med.phantoms.scenes import clouds, leaves, tissue, uptake, vessels
from n2s_med.phantoms.trunks import trunk, trunk_mr

SCENES: Mapping[str, Callable[[Scene], Tensor]] = MappingProxyType(
    {
        "head": head,
        "trunk": trunk,
        "trunk_mr": trunk_mr,
        "vessels": vessels,
        "leaves": leaves,
        "tissue": tissue,
        "uptake": uptake,
        "clouds": clouds,
    }
)
_WEIGHTS = {
    "head": 6,
    "trunk": 3,
    "trunk_mr": 3,
    "vessels": 2,
    "leaves": 3,
    "tissue": 1,
    "uptake": 2,
    "clouds": 1,
}


def textured_volume(shape: tuple[int, int, int], generator: torch.Generator, *, kind: str | None = None) -> Tensor:
    """Return one clean volume of random anatomy, texture and sharpness.

    Parameters
    ----------
    shape
        Voxels along (X, Y, Z); an axis of length 1 gives a slice.
    generator
        Source of every choice; the volume lies on its device.
    kind
        A key of :data:`SCENES`; by default one is drawn.

    Returns
    -------
    Tensor
        float32 (X, Y, Z), minimum 0 and maximum 1; all 0 in the rare volume that shows nothing.

    Raises
    ------
    ConfigurationError
        If there is no such kind.
    """
    if kind is not None and kind not in SCENES:
        remedy = f"choose one of {', '.join(SCENES)}"
        raise ConfigurationError(f"unknown kind of generated volume {kind!r}", remedy=remedy)
    dice = Dice(generator)
    kind = kind or dice.pick([name for name, weight in _WEIGHTS.items() for _ in range(weight)])
    axis, factor = _thick_slices(dice, shape)
    scene = _empty_scene(shape, dice, axis, factor)
    image = _averaged(SCENES[kind](scene), axis, min(factor, 2))
    return _unit_range(_scanned(image, dice, smooth=kind == "uptake"))


def _thick_slices(dice: Dice, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Draw the axis across thick slices and their thickness in in-plane voxels, mostly 1."""
    axis = dice.pick((0, 1, 2, 2))
    return axis, (1 if shape[axis] == 1 or dice.chance(0.65) else dice.between(2, 5))


def _empty_scene(shape: tuple[int, int, int], dice: Dice, axis: int, factor: int) -> Scene:
    """Return a scene whose thick slices are drawn as two thinner ones, to be averaged."""
    fine, step = list(shape), [1.0, 1.0, 1.0]
    fine[axis] *= min(factor, 2)
    step[axis] = factor / min(factor, 2)
    grid = Grid((fine[0], fine[1], fine[2]), (step[0], step[1], step[2]), dice.generator.device)
    return Scene(grid, dice, grain=dice.log_uniform(0.003, 0.04))


def _averaged(image: Tensor, axis: int, factor: int) -> Tensor:
    if factor == 1:
        return image
    shape = list(image.shape)
    shape[axis : axis + 1] = [shape[axis] // factor, factor]
    return image.reshape(shape).mean(axis + 1)


def _scanned(image: Tensor, dice: Dice, *, smooth: bool) -> Tensor:
    """Return the image after partial volume, zero filling, shading and display curve, each in some."""
    image = gaussian_blur(image, _point_spread(dice, smooth))
    if not smooth and dice.chance(0.12):
        image = _zero_filled(image, dice.uniform(0.6, 0.95))
    if dice.chance(0.4):
        image = _shaded(image, dice)
    if dice.chance(0.4):
        image = _unit_range(image) ** dice.log_uniform(0.5, 2)
    return 1 - _unit_range(image) if dice.chance(0.05) else image


def _point_spread(dice: Dice, smooth: bool) -> tuple[float, float, float]:
    """Draw a Gaussian width per axis, in voxels: none, slight, or that of an interpolated image."""
    if smooth:
        sigma = dice.log_uniform(0.7, 2.2)
    else:
        sigma = dice.uniform(0.3, 0.7) if dice.chance(0.4) else 1.4 * max(0.0, dice.uniform(-3, 1))
    x, y, z = (sigma * dice.uniform(0.85, 1.15) for _ in range(3))
    return x, y, z


def _zero_filled(image: Tensor, fraction: float) -> Tensor:
    """Return the image as MR zero filling leaves it: the central box of k-space only, so it rings."""
    spectrum = torch.fft.fftn(image)
    for dim, n in enumerate(image.shape):
        keep = torch.fft.fftfreq(n, device=image.device).abs() <= fraction / 2
        spectrum = spectrum * keep.view([-1 if d == dim else 1 for d in range(3)])
    ringing: Tensor = torch.fft.ifftn(spectrum).real
    return ringing.clamp_min(0)


def _shaded(image: Tensor, dice: Dice) -> Tensor:
    """Return the image under a smooth multiplicative field, as of a receive coil."""
    grid = Grid((image.shape[0], image.shape[1], image.shape[2]), device=image.device)
    wavelength = dice.log_uniform(0.8, 3) * max(image.shape)
    return image * torch.exp(dice.uniform(0, 0.35) * smooth_field(grid, dice.generator, wavelength))


def _unit_range(image: Tensor) -> Tensor:
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp_min(1e-12)
