"""The AR-DAE UNet: from a volume of unit noise to the score of its density.

A 3D (or 2D) UNet of average pooling and nearest upsampling, two convolutions a level. Any size of one voxel
or more per axis passes: pooling rounds up and upsampling takes the size of its skip.
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

SOFT = 8.0
"""Noise standard deviations beyond which detail is an edge, not noise."""


class ScoreUNet(nn.Module):
    """Score network ``R(v) = -a ψ(v - G v) + net(v - G v, G v - centre, traits)`` of unit-noise volumes.

    ``v + R(v)`` is the denoised volume. It comes in two channels, detail and base, both compressed beyond
    :data:`SOFT`: an edge of a thousand noise SDs, as of bone in CT, looks like any strong edge, and detail of one
    noise SD is not lost in bfloat16 beside intensities of hundreds. For white noise (``a = 1``) the network starts
    from the Gaussian filter ``G`` where detail is as weak as noise and from the volume itself at edges (``ψ``
    falls off there); for correlated noise (``a = 0``) it starts from the volume itself.

    Parameters
    ----------
    spatial_dims
        2 or 3.
    channels
        Feature channels of each level, finest first.
    """

    centre: Tensor

    def __init__(self, spatial_dims: int = 3, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.channels: tuple[int, ...] = tuple(channels)
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        fine_to_coarse = list(zip((2, *channels[:-1]), channels, strict=True))
        self.encoder = nn.ModuleList(_Block(conv, inside, out, 2 * spatial_dims) for inside, out in fine_to_coarse)
        self.decoder = nn.ModuleList(_Block(conv, coarse + fine, fine) for fine, coarse in itertools.pairwise(channels))
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

    def forward(self, v: Tensor, traits: Tensor | None = None) -> Tensor:
        """Return the score of ``v``.

        Parameters
        ----------
        v
            Unit-noise volumes of shape (N, 1, X, Y[, Z]).
        traits
            :attr:`~n2s_med.noise.correlation.Correlation.traits` of each volume's noise, shape (N, 4 or 6);
            white noise if not given.

        Returns
        -------
        Tensor
            ``R(v)`` of the same shape, per unit of ``v``.
        """
        if traits is None:
            traits = v.new_zeros(v.shape[0], 2 * self.spatial_dims)
        base = _smooth(v)
        detail = v - base
        shown = SOFT * torch.tanh(detail / SOFT), SOFT * torch.asinh((base - self.centre) / SOFT)
        correction = self._unet(torch.cat(shown, dim=1), traits)
        smoothing = (1 - 2 * traits[:, : self.spatial_dims].mean(dim=1)).clamp(0, 1)
        weak = detail / (1 + (detail / SOFT).square())
        return correction - smoothing.view(-1, *(1,) * (v.ndim - 1)) * weak

    def _unet(self, x: Tensor, traits: Tensor) -> Tensor:
        pool: Callable[..., Tensor] = F.avg_pool3d if self.spatial_dims == 3 else F.avg_pool2d
        skips: list[Tensor] = []
        for block in self.encoder:
            if skips:
                x = pool(x, [min(2, size) for size in x.shape[2:]], ceil_mode=True)
            x = block(x, traits)
            skips.append(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
            x = block(torch.cat((x, skip), dim=1))
        score: Tensor = self.head(x)
        return score


def _smooth(v: Tensor) -> Tensor:
    """``G v`` by one small convolution per axis, edges replicated."""
    radius = len(KERNEL) // 2
    for axis in range(2, v.ndim):
        index = torch.arange(-radius, v.shape[axis] + radius, device=v.device).clamp(0, v.shape[axis] - 1)
        padded = v.index_select(axis, index)
        smooth = torch.zeros_like(v)
        for tap, weight in enumerate(KERNEL):
            smooth = smooth.add(padded.narrow(axis, tap, v.shape[axis]), alpha=weight)
        v = smooth
    return v


class _Block(nn.Module):
    """Two convolutions with leaky ReLU, He initialised; the traits shift the channels after the first."""

    def __init__(self, conv: type[nn.Conv2d] | type[nn.Conv3d], inside: int, out: int, traits: int = 0) -> None:
        super().__init__()
        self.first, self.second = conv(inside, out, 3, padding=1), conv(out, out, 3, padding=1)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.shift = nn.Linear(traits, out, bias=False) if traits else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, traits: Tensor | None = None) -> Tensor:
        x = self.first(x)
        if self.shift is not None and traits is not None:
            x = x + self.shift(traits).view(*x.shape[:2], *(1,) * (x.ndim - 2))
        return F.leaky_relu(self.second(F.leaky_relu(x, SLOPE, inplace=True)), SLOPE, inplace=True)
