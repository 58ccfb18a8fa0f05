"""Generated scenes without a body plan: overlapping solids, cells, vessels, uptake, clouds.

Each maps a :class:`Scene` to values (X, Y, Z), air 0 and tissue about 0.2 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from n2s_med.phantoms.grids import band_field, power_law_field
from n2s_med.phantoms.scene import Scene, grow_tree
from n2s_med.phantoms.solids import box, ellipsoid, filament, rotated, sheet


def leaves(scene: Scene) -> Tensor:
    """Overlapping opaque solids of every size: the dead-leaves model of natural scenes, in 3D.

    As Lee, Mumford & Huang, Int. J. Comput. Vis. 41 (2001) 35, but log-uniform in size and the large first,
    so that few leaves are drawn in vain.
    """
    dice = scene.dice
    image = scene.material(dice.uniform())
    largest = dice.uniform(0.3, 0.6) * scene.size
    radii = [dice.log_uniform(min(2.0, largest), largest) for _ in range(dice.between(40, 100))]
    for radius in sorted(radii, reverse=True):
        centre = scene.place(0.6)
        block = scene.block(centre, 1.4 * radius)
        if image[block].numel():
            local = scene.points[(slice(None), *block)] - torch.tensor(centre).to(image).view(3, 1, 1, 1)
            distance = _leaf(scene, rotated(local, dice.rotation()), radius)
            image[block] = scene.paint(image[block], distance, scene.material(dice.uniform(), block=block))
    return image


def _leaf(scene: Scene, points: Tensor, radius: float) -> Tensor:
    """Return the distance to one solid about the origin: ellipsoid, shell or box."""
    radii = [radius * scene.dice.log_uniform(0.25, 1) for _ in range(3)]
    if scene.dice.chance(0.25):
        return box(points, (0, 0, 0), [0.8 * r for r in radii])
    distance = ellipsoid(points, (0, 0, 0), radii)
    if scene.dice.chance(0.25):
        wall = scene.dice.uniform(0.4, 0.5 + 0.1 * radius)
        return (distance + wall).abs() - wall
    return distance


def tissue(scene: Scene) -> Tensor:
    """Cells of a Voronoi diagram, constant or grainy, with septa between them in some."""
    dice = scene.dice
    seeds = torch.tensor([scene.place(0.65) for _ in range(dice.between(6, 40))])
    cell, gap = _voronoi(scene.points, seeds)
    means = torch.rand(len(seeds), generator=dice.generator, device=scene.grid.device)
    image = scene.material(0.0) + (means ** dice.uniform(0.6, 2))[cell]
    if dice.chance(0.6):
        image = scene.paint(image, gap - dice.uniform(0.2, 1.2), scene.material(dice.uniform(0, 1.2)))
    return with_vessels(scene, image, dice.uniform(0.2, 1.0))


def _voronoi(points: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the nearest seed and half the gap to the second nearest, both (X, Y, Z).

    |p − s|² is expanded, so that the work is one matrix product.
    """
    seeds = seeds.to(points)
    square = seeds.square().sum(1).view(-1, 1, 1, 1) - 2 * torch.einsum("sd,dxyz->sxyz", seeds, points)
    square += points.square().sum(0)
    two = square.topk(2, dim=0, largest=False)
    near, far = two.values.clamp_min(0).sqrt()
    return two.indices[0], (far - near) / 2


def with_vessels(
    scene: Scene, image: Tensor, value: float, probability: float = 0.4, within: Tensor | None = None
) -> Tensor:
    """Return the image crossed, in some scenes, by winding threads of about one or two voxels.

    ``within`` is the distance to the solid that holds them.
    """
    if not scene.dice.chance(probability):
        return image
    pitch = scene.dice.log_uniform(14, 40)
    radius = scene.dice.log_uniform(0.35, 0.06 * pitch + 0.4)
    lines = filament(scene.grid, scene.smooth(pitch), scene.smooth(pitch)) - radius
    return scene.paint(image, lines if within is None else torch.maximum(lines, within), value)


def vessels(scene: Scene) -> Tensor:
    """Angiography: bright branching trees and threads in dim, clouded tissue; bone in some."""
    dice = scene.dice
    image = scene.material(dice.uniform(0.05, 0.35)) + 0.05 * dice.uniform() * scene.smooth(30)
    for _ in range(dice.between(2, 16)):
        radii = [dice.log_uniform(0.06, 0.35) * scene.size for _ in range(3)]
        scene.paint_ellipsoid(image, scene.place(), radii, scene.material(dice.uniform(0.05, 0.5)))
    if dice.chance(0.4):
        image = _with_bone(scene, image)
    bright = dice.uniform(0.5, 1.0)
    for _ in range(dice.between(1, 4)):
        root, radius = scene.place(), dice.log_uniform(1.2, 0.09 * scene.size + 1.5)
        blood = scene.material(bright, 0.5)
        grow_tree(scene, image, blood, root=root, direction=dice.direction(), radius=radius)
    return with_vessels(scene, image, bright * dice.uniform(0.4, 1), 0.7)


def _with_bone(scene: Scene, image: Tensor) -> Tensor:
    """Return the image with one long bone: a dense shell about spongy, fatty marrow."""
    dice = scene.dice
    radius = dice.uniform(0.08, 0.3) * scene.size
    turned = rotated(scene.points, dice.rotation())
    distance = ellipsoid(turned, scene.place(), (radius, radius * dice.uniform(0.5, 1), torch.inf))
    image = scene.paint(image, distance, scene.material(dice.uniform(0.6, 1), 0.5))
    spongy = scene.material(dice.uniform(0.15, 0.5), 4)
    return scene.paint(image, distance + dice.uniform(0.8, 0.15 * radius + 1), spongy)


def uptake(scene: Scene) -> Tensor:
    """Emission tomography: organs and lesions of log-uniform uptake in a dim body, no sharp edge."""
    dice = scene.dice
    body = ellipsoid(scene.points, scene.place(0.2), [dice.uniform(0.3, 0.8) * scene.size for _ in range(3)])
    body_value = scene.material(0.1, 0.5) * torch.exp(0.3 * scene.smooth(dice.log_uniform(8, 40)))
    image = scene.paint(torch.zeros_like(body), body, body_value)
    for _ in range(dice.between(3, 14)):
        radii = [dice.log_uniform(0.04, 0.25) * scene.size for _ in range(3)]
        scene.paint_ellipsoid(image, scene.place(0.4), radii, scene.material(dice.log_uniform(0.02, 0.5)))
    for _ in range(dice.between(0, 10)):
        radii = [dice.log_uniform(1.2, 5) for _ in range(3)]
        scene.paint_ellipsoid(image, scene.place(0.4), radii, dice.log_uniform(0.15, 1))
    return image.clamp_min(0)


def clouds(scene: Scene) -> Tensor:
    """Multi-scale texture cut by level sets: terraces, sheets and parenchyma without any solid."""
    dice = scene.dice
    image = 0.5 + 0.15 * power_law_field(scene.grid, dice.generator, dice.uniform(2.4, 4.2))
    for _ in range(dice.between(1, 5)):
        wavelength = dice.log_uniform(7, 0.8 * scene.size + 8)
        field = band_field(scene.grid, dice.generator, wavelength, dice.uniform(0.3, 0.9))
        distance = sheet(scene.grid, field - dice.uniform(-1.2, 1.2))
        if dice.chance(0.4):
            distance = distance.abs() - dice.log_uniform(0.4, 0.1 * wavelength + 0.4)
        image = scene.paint(image, distance, scene.material(dice.uniform(), 3))
    return with_vessels(scene, image, dice.uniform(), 0.3)
