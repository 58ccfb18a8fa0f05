"""The plain network that ours is held against: a UNet of two convolutions a level, as they are usually built."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
"""Of the leaky ReLU."""


class UNet(nn.Module):
    """A 3D UNet: two 3³ convolutions a level, average pooling, nearest upsampling, concatenated skips.

    Parameters
    ----------
    channels
        Feature channels of each level, finest first.
    inputs, outputs
        Channels of what goes in and comes out.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64), inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        before = (inputs, *channels[:-1])
        self.down = nn.ModuleList(_convolutions(i, o) for i, o in zip(before, channels, strict=True))
        self.up = nn.ModuleList(_convolutions(f + c, f) for f, c in itertools.pairwise(channels))
        self.head = nn.Conv3d(channels[0], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, X, Y, Z) to (N, outputs, X, Y, Z); edges are multiples of the coarsest voxel."""
        skips: list[Tensor] = []
        for level in self.down:
            x = level(F.avg_pool3d(x, 2) if skips else x)
            skips.append(x)
        for level, skip in reversed(list(zip(self.up, skips[:-1], strict=True))):
            x = level(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skip), dim=1))
        answer: Tensor = self.head(x)
        return answer


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv3d(inputs, outputs, 3, padding=1), nn.Conv3d(outputs, outputs, 3, padding=1)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(SLOPE, inplace=True))))
