"""A score network over a volume of any length, a few planes at a time.

Every layer is a generator: it takes chunks of planes, gives chunks of planes, and keeps back no more than its kernel
needs, two planes for a convolution. So each voxel of each layer is computed once, without the halos of tiles; memory
does not grow with the number of planes; and the result is that of the whole volume in one piece, whatever the chunks.

Planes lie along the last axis of a volume, and along the first spatial axis of everything in here, where convolutions
run over long rows of memory; so the kernels are turned too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from n2s_med.compute import Compute
from n2s_med.score.network import Level, ScoreUNet, merged

Chunks = Iterator[Tensor]
"""Tensors (N, C, planes, rest of the volume), one after the other along the planes."""


class StreamedNetwork:
    """A score network that is given a volume in chunks.

    Parameters
    ----------
    network
        The network; it is copied.
    traits
        :attr:`~n2s_med.noise.correlation.Correlation.traits` of the volume's noise, (4,) or (6,).
    compute
        Device and number type.
    """

    def __init__(self, network: ScoreUNet, traits: Tensor, compute: Compute) -> None:
        self.compute = compute
        self.dtype = torch.bfloat16 if compute.bf16 else torch.float32
        self.layout = torch.channels_last_3d if network.spatial_dims == 3 else torch.channels_last
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        for level in self.network.encoder:
            level.tell(traits)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                layer.weight.data = layer.weight.movedim(-1, 2).contiguous()
                if layer.kernel_size[0] == 3:
                    layer.padding = (0, *layer.padding[1:])
        self.network.to(device=compute.device, dtype=self.dtype, memory_format=self.layout)  # type: ignore[call-overload]
        self.network.centre = self.network.centre.float()
        self.traits = traits[None].to(compute.device)

    @torch.no_grad()
    def __call__(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the score of the chunks, in chunks of other lengths.

        Parameters
        ----------
        chunks
            Float32 unit-noise data (N, X[, Y], planes).

        Yields
        ------
        Tensor
            Float32 on the CPU, laid out like the input, as many planes in all.
        """
        turned = (chunk.movedim(-1, 1)[:, None].to(self.compute.device) for chunk in chunks)
        apart = (self._split(window) for window in windows(turned, 1, repeat=True))
        ours, theirs = itertools.tee(apart)
        corrections = self._unet(self._features(*parts) for parts in ours)
        for correction, detail in together(corrections, (detail for detail, _ in theirs)):
            inside = correction[tuple(slice(0, n) for n in detail.shape)].float()
            yield self.network.score(inside, detail, self.traits)[:, 0].movedim(1, -1).cpu()

    def _split(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Detail and base of a chunk, from a window of one plane more on either side."""
        detail, base = self.network.split(window)
        return detail[:, :, 1:-1], base[:, :, 1:-1]

    def _features(self, detail: Tensor, base: Tensor) -> Tensor:
        """What the first convolution sees, padded to the coarsest voxel within the plane."""
        x = self.network.features(detail, base)
        pads = [p for n in reversed(x.shape[3:]) for p in (0, -n % self.network.stride)]
        return F.pad(x, pads).to(self.dtype, memory_format=self.layout)

    def _unet(self, x: Chunks) -> Chunks:
        """The layers of the network in their order; a skip waits until the way up has come to its planes."""
        x, skips = multiples(x, self.network.stride), []
        for level in self.network.encoder:
            x, skip = itertools.tee(_level(level, x))
            skips.append(skip)
        for up, level, skip in reversed(list(zip(self.network.up, self.network.decoder, skips[:-1], strict=True))):
            x = _level(level, _merged(up, x, skip))
        return (self.network.head(window) for window in windows(x, 1))


def _merged(up: nn.Module, x: Chunks, skip: Chunks) -> Chunks:
    for risen, kept in together((up(chunk) for chunk in x), skip):
        yield merged(risen, kept)


def _level(level: Level, x: Chunks) -> Chunks:
    """A level's convolutions, one after the other."""
    for number, layer in enumerate(level.layers):
        x = _convolution(level, number, multiples(x, 2) if layer.stride[0] == 2 else windows(x, 1))
    return x


def _convolution(level: Level, number: int, x: Chunks) -> Chunks:
    for chunk in x:
        yield level.activated(number, level.layers[number](chunk))


def windows(chunks: Chunks, margin: int, *, repeat: bool = False) -> Chunks:
    """Chunks with ``margin`` planes of their neighbours on either side.

    Beyond the ends there are zeros, or the end plane if ``repeat``.
    """
    held: Tensor | None = None
    for chunk in chunks:
        if held is None:
            held = chunk[:, :, :1].expand(-1, -1, margin, *chunk.shape[3:])
            held = held if repeat else torch.zeros_like(held)
        x = torch.cat((held, chunk), dim=2)
        if x.shape[2] > 2 * margin:
            yield x
            x = x[:, :, x.shape[2] - 2 * margin :]
        held = x
    if held is not None:
        last = held[:, :, -1:].expand(-1, -1, margin, *held.shape[3:])
        yield torch.cat((held, last if repeat else torch.zeros_like(last)), dim=2)


def multiples(chunks: Chunks, number: int) -> Chunks:
    """Chunks of a multiple of ``number`` planes each, zeros added to the last."""
    held: Tensor | None = None
    for chunk in chunks:
        x = chunk if held is None else torch.cat((held, chunk), dim=2)
        whole = x.shape[2] - x.shape[2] % number
        if whole:
            yield x[:, :, :whole]
        held = x[:, :, whole:] if whole < x.shape[2] else None
    if held is not None:
        missing = torch.zeros_like(held[:, :, :1]).expand(-1, -1, -held.shape[2] % number, *held.shape[3:])
        yield torch.cat((held, missing), dim=2)


def together(*streams: Chunks) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of several streams, cut so that they cover the same planes, until one stream ends."""
    held = [next(stream, None) for stream in streams]
    while all(chunk is not None for chunk in held):
        planes = min(chunk.shape[2] for chunk in held if chunk is not None)
        yield tuple(chunk[:, :, :planes] for chunk in held if chunk is not None)
        for number, (chunk, stream) in enumerate(zip(held, streams, strict=True)):
            if chunk is not None:
                held[number] = chunk[:, :, planes:] if chunk.shape[2] > planes else next(stream, None)
