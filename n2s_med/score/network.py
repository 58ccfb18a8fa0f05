"""The AR-DAE UNet: from a volume of unit noise to the score of its density.

A 3D (or 2D) UNet that is thin where voxels are many: one convolution into the finest level and one out of it, all
width below, strided convolutions between. (A UNet of two convolutions a level spends two thirds of its arithmetic,
and most of its memory traffic, at the finest.) Any size of one voxel or more per axis passes: volumes are mirrored at
their far ends to a multiple of the coarsest voxel. (Zeros there are no noise, which training never shows, beside it:
base weights took structure five voxels away, ten noise SDs strong, for noise.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from n2s_med.score.activated import convolved
from n2s_med.score.blocks import blocks, gathered, scattered, spread, voxels

SLOPE = 0.1
"""Of the leaky ReLU."""

SOFT = 8.0
"""Noise standard deviations beyond which detail is an edge, not noise."""

STILL = (0.04, 0.16)
"""Local variances of detail between which a region goes from holding no noise to holding some; unit noise has 0.8."""

CONVOLUTIONS = 2
"""At every level below the finest, each way."""


class ScoreUNet(nn.Module):
    """Score network ``R(v) = -a ψ(v - G v) + net(v - G v, G v - centre, traits)`` of unit-noise volumes.

    ``v + R(v)`` is the denoised volume. It comes in two channels, detail and base, both compressed beyond
    :data:`SOFT`: an edge of a thousand noise SDs, as of bone in CT, looks like any strong edge, and detail of one
    noise SD is not lost in bfloat16 beside intensities of hundreds. For white noise (``a = 1``) the network starts
    from the binomial filter ``G`` where detail is as weak as noise and from the volume itself at edges (``ψ``
    falls off there); for correlated noise (``a = 0``) it starts from the volume itself.

    :meth:`features` and :meth:`score` are the two ends of :meth:`forward`, for those who run the layers between
    them in another order (:mod:`n2s_med.score.stream`).

    Parameters
    ----------
    spatial_dims
        2 or 3.
    channels
        Feature channels of each level, finest first.
    """

    centre: Tensor

    def __init__(self, spatial_dims: int = 3, channels: Sequence[int] = (16, 64, 128)) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.channels: tuple[int, ...] = tuple(channels)
        conv, up = (nn.Conv3d, nn.ConvTranspose3d) if spatial_dims == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        self.encoder, self.decoder = (cast("list[Level]", nn.ModuleList()) for _ in range(2))
        self.up = cast("list[nn.ConvTranspose2d | nn.ConvTranspose3d]", nn.ModuleList())
        for level, width in enumerate(channels):
            into = [conv(channels[level - 1], width, 2, stride=2)] if level else [conv(2, width, 3, padding=1)]
            down, back = ([conv(width, width, 3, padding=1) for _ in range(CONVOLUTIONS * (level > 0))] for _ in "<>")
            self.encoder.append(Level([*into, *down], traits=2 * spatial_dims))
            if level < len(channels) - 1:
                self.up.append(up(channels[level + 1], width, 2, stride=2))
                self.decoder.append(Level(back))
        self.head = conv(channels[0], 1, 3, padding=1)
        with torch.no_grad():
            for layer in self.up:
                layer.weight.normal_(std=layer.in_channels**-0.5)
            self.head.weight.mul_(0.1)
        self.register_buffer("centre", torch.zeros(()))
        layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
        self.to(memory_format=layout)  # type: ignore[call-overload]

    @property
    def stride(self) -> int:
        """Voxels of the finest level per voxel of the coarsest; two at least, which inference takes at once."""
        return 1 << max(1, len(self.channels) - 1)

    def forward(self, v: Tensor, traits: Tensor | None = None) -> Tensor:
        """Return the score of ``v``.

        Parameters
        ----------
        v
            Unit-noise volumes of shape (N, 1, X, Y[, Z]).
        traits
            :attr:`~n2s_med.noise.correlation.Correlation.traits` of each volume's noise, shape (N, 4 or 6), or one row
            for all; white noise if not given.

        Returns
        -------
        Tensor
            ``R(v)`` of the same shape, per unit of ``v``.
        """
        if traits is None:
            traits = v.new_zeros(1, 2 * self.spatial_dims)
        detail, base = self.split(filled(v, self.stride))
        layers = self._plainly if _in_a_program() else self._by_blocks
        correction = layers(self.features(detail, base), traits)
        score = self.score(correction, detail, self.noisy(detail), traits)
        beyond = [p for n in reversed(v.shape[2:]) for p in (0, -(-n % self.stride))]
        in_whole = not (_in_a_program() or any(beyond))
        return score if in_whole else F.pad(score, beyond)  # a slice would tie an exported program to these sizes

    def _plainly(self, features: Tensor, traits: Tensor) -> Tensor:
        """The layers one after the other, each as it is: for programs that are exported or compiled."""
        x = features
        skips: list[Tensor] = []
        for level in self.encoder:
            x = level(x, traits)
            skips.append(x)
        for up, level, skip in reversed(list(zip(self.up, self.decoder, skips[:-1], strict=True))):
            x = level(merged(up(x), skip))
        return cast(Tensor, self.head(x))

    def _by_blocks(self, features: Tensor, traits: Tensor) -> Tensor:
        """The same, but each way to another resolution by blocks of voxels, and the finest level in blocks throughout.

        It is thin, and convolutions of many channels at half the resolution are several times faster.
        """
        kind = features.device.type
        if kind == "cpu" and bool((traits == traits[:1]).all()):
            traits = traits[:1]  # one noise: what is told of it is part of the bias
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
        around = [1] * 2 * self.spatial_dims
        x = blocks(F.pad(features.to(dtype), around))
        skips: list[Tensor] = []
        for number, level in enumerate(self.encoder):
            way, *layers = level.layers
            shift = level.shift(traits) if level.shift is not None else None
            if number:
                x = blocks(x) if number > 1 else x
                x = _mixed(x, gathered(way.weight), way.bias, SLOPE)
            else:
                x = _activated(x, gathered(spread(way.weight)), way.bias, shift, padding=0)
            for layer in layers:
                x, shift = _activated(x, layer.weight, layer.bias, shift), None
            skips.append(x)
        for number, (up, level) in reversed(list(enumerate(zip(self.up, self.decoder, strict=True)))):
            x = _mixed(x, scattered(up.weight), up.bias)
            x = F.leaky_relu((voxels(x) if number else x) + skips[number], SLOPE, inplace=True)
            for layer in level.layers:
                x = _activated(x, layer.weight, layer.bias)
        weight = gathered(spread(self.head.weight))
        answer = voxels(convolved(x, _laid(weight, dtype), _bias(self.head.bias, weight).to(dtype), 1))
        return F.pad(answer, [-p for p in around])

    @staticmethod
    def split(v: Tensor) -> tuple[Tensor, Tensor]:
        """Detail ``v - G v`` and base ``G v``."""
        base = ScoreUNet.smoothed(v)
        return v - base, base

    @staticmethod
    def smoothed(v: Tensor) -> Tensor:
        """The binomial filter ``G`` of volumes (N, C, spatial)."""
        axes = range(2, v.ndim)
        for axis in axes:
            v = _summed(v, axis)
        return v * 0.25 ** len(axes)

    @staticmethod
    def whiteness(traits: Tensor) -> Tensor:
        """One for white noise, down to zero where neighbours correlate by a half, shape (N,)."""
        return (1 - 2 * traits[:, : traits.shape[1] // 2].mean(dim=1)).clamp(0, 1)

    def features(self, detail: Tensor, base: Tensor) -> Tensor:
        """What the first convolution sees."""
        ratio = (base - self.centre) / SOFT
        asinh = torch.sign(ratio) * torch.log(ratio.abs() + torch.sqrt(ratio * ratio + 1))  # torch's own is slow
        return torch.cat((SOFT * torch.tanh(detail / SOFT), SOFT * asinh), dim=1)

    @staticmethod
    def detail_variance(spatial_dims: int) -> float:
        """Variance of the detail of white unit noise: ``1 - 2 g + |G|²`` with ``g`` the middle of the filter ``G``."""
        middle, squares = 0.5**spatial_dims, 0.375**spatial_dims
        return 1 - 2 * middle + squares

    @staticmethod
    def noisy(detail: Tensor) -> Tensor:
        """Where detail is as strong as noise: 1, down to 0 where there is none, as in air of no counts.

        The network was never shown less than unit noise, and may say anything there.
        """
        energy = ScoreUNet.smoothed(detail.square())
        return ((energy - STILL[0]) / (STILL[1] - STILL[0])).clamp(0, 1)

    def score(self, correction: Tensor, detail: Tensor, noisy: Tensor, traits: Tensor) -> Tensor:
        """``R`` from what the last convolution gives."""
        white = self.whiteness(traits).view(-1, *(1,) * (detail.ndim - 1))
        weak = detail / (1 + (detail / SOFT).square())
        return correction * (1 - white * (1 - noisy)) - white * weak


def filled(v: Tensor, stride: int, first: int = 2) -> Tensor:
    """Volumes (N, C, spatial), mirrored at the far ends of axes from this one on to sizes that the stride divides."""
    for axis in range(first, v.ndim):
        missing = -v.shape[axis] % stride
        if _in_a_program():  # by distances from the last place, none of which ties the program to a size
            away = torch.arange(1 - v.shape[axis], missing + 1, device=v.device).abs().clamp_max(v.shape[axis] - 1)
            v = v.flip(axis).movedim(axis, 0)[away].movedim(0, axis)  # which takes an index of the CPU's on any device
        elif missing:
            v = torch.cat((v, mirrored(v, axis, missing)), axis)
    return v


def mirrored(v: Tensor, axis: int, count: int) -> Tensor:
    """So many further places along an axis: those before its last in reverse, and the first again if they run out."""
    last = v.shape[axis] - 2
    return v.index_select(axis, torch.arange(last, last - count, -1, device=v.device).clamp_min(0))


def _activated(
    x: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None = None, *, padding: int = 1
) -> Tensor:
    """A convolution, activated, in the number type of its features; a shift (N or 1, C) may come in between."""
    offset = _bias(bias, weight)
    if shift is not None:
        shift = shift.repeat(1, weight.shape[0] // shift.shape[1])
    if shift is None or len(shift) == 1:
        offset = offset if shift is None else offset + shift[0]
        return convolved(x, _laid(weight, x.dtype), offset.to(x.dtype), padding, SLOPE)
    x = convolved(x, _laid(weight, x.dtype), offset.to(x.dtype), padding)
    return F.leaky_relu(x + shift.to(x.dtype)[..., *[None] * (x.ndim - 2)], SLOPE, inplace=True)


def _mixed(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """A convolution by a kernel of one voxel: a product of matrices, as gradients of such convolutions are slow."""
    number, channels, *size = x.shape
    rows = x.movedim(1, -1).reshape(-1, channels)
    rows = F.linear(rows, weight.flatten(1).to(x.dtype), _bias(bias, weight).to(x.dtype))
    if slope != 1:
        rows = F.leaky_relu(rows, slope, inplace=True)  # here, as the gradient of what alters a view is slow
    return rows.view(number, *size, len(weight)).movedim(-1, 1)


def _laid(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A kernel in a number type, in channels-last memory."""
    layout = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
    return weight.to(dtype, memory_format=layout)


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    """The bias of a kernel in another form."""
    assert bias is not None
    return bias if len(bias) == len(weight) else bias.repeat(len(weight) // len(bias))


def merged(risen: Tensor, skip: Tensor) -> Tensor:
    """What came up from the coarser level and what was kept of this one, activated."""
    return F.leaky_relu(risen.add_(skip), SLOPE, inplace=True)


class Level(nn.Module):
    """Convolutions with leaky ReLU, He initialised; the traits shift the channels after the first of kernel 3."""

    def __init__(self, layers: Sequence[nn.Conv2d | nn.Conv3d], traits: int = 0) -> None:
        super().__init__()
        self.layers = cast("list[nn.Conv2d | nn.Conv3d]", nn.ModuleList(layers))
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.told = int(len(layers) > 1)
        self.shift = nn.Linear(traits, layers[-1].out_channels, bias=False) if traits else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, traits: Tensor | None = None) -> Tensor:
        """Features of the level from those of the one before, (N, C, spatial)."""
        for number, layer in enumerate(self.layers):
            x = self.activated(number, layer(x), traits)
        return x

    def tell(self, traits: Tensor) -> None:
        """Put the shift by one noise's traits into the bias, once for all volumes of it."""
        bias = self.layers[self.told].bias
        if self.shift is not None and bias is not None:
            with torch.no_grad():
                bias.add_(self.shift(traits))

    def activated(self, number: int, x: Tensor, traits: Tensor | None = None) -> Tensor:
        """What follows the convolution of this number, in place."""
        if self.shift is not None and traits is not None and number == self.told:
            x = x + self.shift(traits)[..., *[None] * (x.ndim - 2)]
        return F.leaky_relu(x, SLOPE, inplace=True)


def _in_a_program() -> bool:
    """Whether what runs is being exported or compiled."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _summed(v: Tensor, axis: int) -> Tensor:
    """The filter (1, 2, 1) along one axis, edges replicated."""
    size = v.shape[axis]
    if v.requires_grad or _in_a_program():
        padded = torch.cat((v.narrow(axis, 0, 1), v, v.narrow(axis, size - 1, 1)), axis)
        return torch.add(padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size), v, alpha=2)
    sides = torch.empty_like(v)  # half the time, but not for programs that are exported
    if size > 2:
        torch.add(v.narrow(axis, 0, size - 2), v.narrow(axis, 2, size - 2), out=sides.narrow(axis, 1, size - 2))
    for end in (0, size - 1):
        before, after = (v.narrow(axis, at, 1) for at in (max(0, end - 1), min(size - 1, end + 1)))
        torch.add(before, after, out=sides.narrow(axis, end, 1))
    return sides.add_(v, alpha=2)
