"""The AR-DAE UNet: from a volume of unit noise to the score of its density.

A 3D (or 2D) UNet of average pooling and nearest upsampling, two convolutions a level. Any size of one voxel
or more per axis passes: pooling rounds up and upsampling is cropped to its skip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
"""Of the leaky ReLU."""

KERNEL = (0.000_06, 0.009_62, 0.205_42, 0.569_80, 0.205_42, 0.009_62, 0.000_06)
"""``G`` along one axis: a Gaussian of standard deviation 0.7 voxel."""


class ScoreUNet(nn.Module):
    """Score network ``R(v) = (G * v - v) + net(v - G * v, G * v - centre)`` of unit-noise volumes.

    ``v + R(v)`` is the denoised volume, so the network starts from a Gaussian filter ``G`` and learns what to
    add (AR-DAE's residual form, Lim et al. 2020, with a better start). The volume comes in two channels,
    detail and base, since detail of one noise SD would be lost in bfloat16 beside intensities of hundreds.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    channels
        Feature channels of each level, finest first.
    start_smooth
        Start from ``G``, which suits white noise; otherwise from the identity, which suits correlated noise.
    """

    centre: Tensor

    def __init__(
        self, spatial_dims: int = 3, channels: Sequence[int] = (16, 32, 64), start_smooth: bool = True
    ) -> None:
        super().__init__()
        self.spatial_dims, self.start_smooth = spatial_dims, start_smooth
        self.channels: tuple[int, ...] = tuple(channels)
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        fine_to_coarse = list(zip((2, *channels[:-1]), channels, strict=True))
        self.encoder = nn.ModuleList(_block(conv, inside, out) for inside, out in fine_to_coarse)
        self.decoder = nn.ModuleList(_block(conv, coarse + fine, fine) for fine, coarse in itertools.pairwise(channels))
        self.head = conv(channels[0], 1, 3, padding=1)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
        self.register_buffer("centre", torch.zeros(()))

    @property
    def stride(self) -> int:
        """Voxels of the finest level per voxel of the coarsest."""
        return 1 << (len(self.channels) - 1)

    @property
    def receptive_radius(self) -> int:
        """Voxels on each side that can reach one output voxel, rounded up to a multiple of the stride.

        Each level's convolutions reach one voxel of that level each, and pooling and upsampling at most one.
        """
        levels = len(self.channels)
        convolutions = sum(4 << level for level in range(levels - 1)) + (2 << (levels - 1)) + 1
        reach = convolutions + self.stride + len(KERNEL) // 2
        return -(-reach // self.stride) * self.stride

    def forward(self, v: Tensor) -> Tensor:
        """Return the score of ``v``.

        Parameters
        ----------
        v
            Unit-noise volumes of shape (N, 1, X, Y[, Z]).

        Returns
        -------
        Tensor
            ``R(v)`` of the same shape, per unit of ``v``.
        """
        base = self._smooth(v)
        correction = self._unet(torch.cat((v - base, base - self.centre), dim=1))
        return base - v + correction if self.start_smooth else correction

    def _unet(self, x: Tensor) -> Tensor:
        pool: Callable[..., Tensor] = F.avg_pool3d if self.spatial_dims == 3 else F.avg_pool2d
        skips = []
        for block in self.encoder[:-1]:
            x = block(x)
            skips.append(x)
            x = pool(x, [min(2, size) for size in x.shape[2:]], ceil_mode=True)
        x = self.encoder[-1](x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            for axis, size in enumerate(skip.shape[2:], start=2):
                x = x.narrow(axis, 0, size)
            x = block(torch.cat((x, skip), dim=1))
        score: Tensor = self.head(x)
        return score

    def _smooth(self, v: Tensor) -> Tensor:
        """``G * v`` by one small convolution per axis, edges replicated."""
        radius, smooth = len(KERNEL) // 2, v
        for axis in range(2, v.ndim):
            index = torch.arange(-radius, v.shape[axis] + radius, device=v.device).clamp(0, v.shape[axis] - 1)
            padded = smooth.index_select(axis, index)
            smooth = torch.zeros_like(v)
            for offset, weight in enumerate(KERNEL):
                smooth = smooth.add(padded.narrow(axis, offset, v.shape[axis]), alpha=weight)
        return smooth


def _block(conv: type[nn.Conv2d] | type[nn.Conv3d], inside: int, out: int) -> nn.Sequential:
    """Two convolutions with leaky ReLU, He initialised."""
    layers: list[nn.Module] = []
    for channels in (inside, out):
        layer = conv(channels, out, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        layers += [layer, nn.LeakyReLU(SLOPE, inplace=True)]
    return nn.Sequential(*layers)
