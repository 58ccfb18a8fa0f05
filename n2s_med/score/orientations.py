"""The same network for a volume that lies otherwise.

A volume turned, passed and turned back is the volume itself, passed by a network whose kernels are turned back: so
passes of several orientations, which are averaged, go through one stream, and all they have in common is computed once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from n2s_med.noise.correlation import Correlation
from n2s_med.score.network import ScoreUNet

LIKE_SPACING = 1.1
"""Axes whose spacings differ by less than this factor may be exchanged."""

MOST = 4
"""Orientations there are at most."""


@dataclass(frozen=True)
class Orientation:
    """A way to lay a volume.

    Attributes
    ----------
    order
        A permutation of the spatial axes.
    flips
        The axes to flip after it.
    """

    order: tuple[int, ...]
    flips: tuple[int, ...] = ()

    def laid(self, v: Tensor) -> Tensor:
        """A batch (N, C, spatial) in this orientation."""
        return v.permute(0, 1, *(a + 2 for a in self.order)).flip([a + 2 for a in self.flips])

    def restored(self, v: Tensor) -> Tensor:
        """Undo :meth:`laid`."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return v.flip([a + 2 for a in self.flips]).permute(0, 1, *(a + 2 for a in inverse))

    def of(self, network: ScoreUNet) -> ScoreUNet:
        """The network that says of a volume, restored, what ``network`` says of it laid in this orientation.

        On sizes that its stride divides; on others the two mirror at different ends.
        """
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                module.weight.data = self.restored(module.weight.data).contiguous()
            elif isinstance(module, nn.Linear):  # by the traits: one lag after the other, axis by axis
                axes = len(self.order)
                told = [self.order.index(n % axes) + n // axes * axes for n in range(module.in_features)]
                module.weight.data = module.weight.data[:, told]
        return network


def axis_orders(spacing_mm: Sequence[float], correlation: Correlation) -> list[tuple[int, ...]]:
    """Permutations of the axes of a volume under which its spacing and its noise's correlation stay what they are."""
    kernel = correlation.kernel

    def alike(order: tuple[int, ...]) -> bool:
        ratios = (spacing_mm[a] / spacing_mm[b] for b, a in enumerate(order))
        permuted = correlation.permuted(order).kernel
        return all(1 / LIKE_SPACING < r < LIKE_SPACING for r in ratios) and (
            permuted.shape == kernel.shape and bool((permuted - kernel).abs().max() <= 0.02)
        )

    return [order for order in itertools.permutations(range(kernel.ndim)) if alike(order)]


def any_orientation(axes: int, generator: torch.Generator) -> Orientation:
    """One of all there are, each as likely."""
    order = torch.randperm(axes, generator=generator).tolist()
    flipped = torch.rand(axes, generator=generator) < 0.5
    return Orientation(tuple(order), tuple(axis for axis in range(axes) if flipped[axis]))


def orientations(number: int, spacing_mm: Sequence[float], correlation: Correlation) -> list[Orientation]:
    """The first so many orientations, whose errors have least in common (``benchmarks/orientations.py``).

    Parameters
    ----------
    number
        From 1 to :data:`MOST`.
    spacing_mm
        Voxel spacing along each axis: unlike axes are not exchanged.
    correlation
        Of the noise, likewise.
    """
    axes = tuple(range(len(spacing_mm)))
    orders = axis_orders(spacing_mm, correlation)
    exchanged = [order for order in orders if sum(a != b for a, b in zip(order, axes, strict=True)) == 2]
    exchanged.sort(key=lambda order: order[-1] != axes[-1])  # those of the planes first
    as_it_is = Orientation(axes)
    if not exchanged:
        return [as_it_is, Orientation(axes, axes), Orientation(axes, axes[1:]), Orientation(axes, axes[:1])][:number]
    order = exchanged[0]
    first, second = (a for a in axes if order[a] != a)
    rest = tuple(a for a in axes if a != first)
    if len(axes) == 2:
        ways = [Orientation(axes, axes), Orientation(order, (first,)), Orientation(order, (second,))]
    else:
        ways = [Orientation(order, axes), Orientation(axes, rest), Orientation(order, (first,))]
    return [as_it_is, *ways][:number]
