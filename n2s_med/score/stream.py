"""A score network over a volume of any length, a few planes at a time.

Every layer is an iterator: it takes chunks of planes, gives chunks of planes, and keeps back no more than its kernel
needs, two planes for a convolution. So each voxel of each layer is computed once, without the halos of tiles; memory
does not grow with the number of planes; and the result is that of the whole volume in one piece, whatever the chunks.

Planes lie along the last axis of a volume, and along the first spatial axis of everything in here, where convolutions
run over long rows of memory; so the kernels are turned too.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial

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
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        for level in self.network.encoder:
            level.tell(traits)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                layer.weight.data = layer.weight.movedim(-1, 2).contiguous()
                if layer.kernel_size[0] == 3:
                    layer.padding = (0, *layer.padding[1:])
        self.network.to(device=compute.device, dtype=self.dtype, memory_format=self.layout)  # type: ignore[call-overload]
        self.network.centre = network.centre.to(compute.device)
        self.traits = traits[None].to(compute.device)

    def __call__(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Give the score of the chunks, in chunks of other lengths.

        Parameters
        ----------
        chunks
            Float32 unit-noise data (N, X[, Y], planes).

        Returns
        -------
        Iterator of Tensor
            Float32 on the CPU, laid out like the input, as many planes in all.
        """
        details: deque[Tensor] = deque()
        seen = map(partial(self._features, details), Windows(map(self._turned, chunks), 1, repeat=True))
        around = Windows(_taken_up(details), 1, repeat=True)
        inner = map(self._judged, around)
        return itertools.starmap(self._score, Together(self._unet(seen), inner))

    def _turned(self, chunk: Tensor) -> Tensor:
        """A chunk with its planes first, on the device."""
        return chunk.movedim(-1, 1)[:, None].to(self.compute.device)

    def _judged(self, window: Tensor) -> Tensor:
        """Detail, and where it is noise, as two channels, from a window of one plane more on either side."""
        return torch.cat((window, self.network.noisy(window)), dim=1)[:, :, 1:-1]

    def _score(self, correction: Tensor, judged: Tensor) -> Tensor:
        """The score of some planes, turned back."""
        detail, noisy = judged[:, :1], judged[:, 1:]
        inside = correction[tuple(slice(0, n) for n in detail.shape)].float()
        return self.network.score(inside, detail, noisy, self.traits)[:, 0].movedim(1, -1).cpu()

    def _features(self, details: deque[Tensor], window: Tensor) -> Tensor:
        """What the first convolution sees of a window's inner planes, padded to the coarsest voxel within the plane."""
        detail, base = (part[:, :, 1:-1] for part in self.network.split(window))
        details.append(detail.clone())
        x = self.network.features(detail, base)
        pads = [p for n in reversed(x.shape[3:]) for p in (0, -n % self.network.stride)]
        return F.pad(x, pads).to(self.dtype, memory_format=self.layout)

    def _unet(self, x: Chunks) -> Chunks:
        """The layers of the network in their order; a skip waits until the way up has come to its planes."""
        skips: list[deque[Tensor]] = [deque() for _ in self.network.up]
        *above, lowest = self.network.encoder
        x = Multiples(x, self.network.stride)
        for level, skip in zip(above, skips, strict=True):
            x = map(partial(_put_down, skip), _level(level, x))
        x = _level(lowest, x)
        for up, level, skip in reversed(list(zip(self.network.up, self.network.decoder, skips, strict=True))):
            x = _level(level, itertools.starmap(merged, Together(map(up, x), _taken_up(skip))))
        return map(self.network.head, Windows(x, 1))


def _level(level: Level, x: Chunks) -> Chunks:
    """A level's convolutions, one after the other."""
    for number, layer in enumerate(level.layers):
        x = map(partial(_convolution, level, number), Multiples(x, 2) if layer.stride[0] == 2 else Windows(x, 1))
    return x


def _convolution(level: Level, number: int, chunk: Tensor) -> Tensor:
    return level.activated(number, level.layers[number](chunk))


def _put_down(waiting: deque[Tensor], chunk: Tensor) -> Tensor:
    """The chunk, kept for later too."""
    waiting.append(chunk)
    return chunk


def _taken_up(waiting: deque[Tensor]) -> Chunks:
    """What was put down; to be asked for only when there is some or no more will come. (``tee`` frees it too late.)"""
    while waiting:
        yield waiting.popleft()


# These three are classes, not generators: what a generator's variables hold, it holds while it waits.


class Windows(Iterator[Tensor]):
    """Chunks with ``margin`` planes of their neighbours on either side.

    Beyond the ends there are zeros, or the end plane if ``repeat``.
    """

    def __init__(self, chunks: Chunks, margin: int, *, repeat: bool = False) -> None:
        self.chunks, self.margin, self.repeat = chunks, margin, repeat
        self.held: Tensor | None = None
        self.ended = False

    def __next__(self) -> Tensor:
        while (chunk := next(self.chunks, None)) is not None:
            before = self._beyond(chunk[:, :, :1]) if self.held is None else self.held
            window = torch.cat((before, chunk), dim=2)
            inner = window.shape[2] - 2 * self.margin
            self.held = window[:, :, max(0, inner) :].clone()
            if inner > 0:
                return window
        if self.held is None or self.ended:
            raise StopIteration
        self.ended = True
        return torch.cat((self.held, self._beyond(self.held[:, :, -1:])), dim=2)

    def _beyond(self, end: Tensor) -> Tensor:
        """The planes next to an end plane, outside the volume."""
        plane = end if self.repeat else torch.zeros_like(end)
        return plane.expand(-1, -1, self.margin, *end.shape[3:])


class Multiples(Iterator[Tensor]):
    """Chunks of a multiple of ``number`` planes each, zeros added to the last."""

    def __init__(self, chunks: Chunks, number: int) -> None:
        self.chunks, self.number = chunks, number
        self.held: Tensor | None = None

    def __next__(self) -> Tensor:
        while (chunk := next(self.chunks, None)) is not None:
            x = chunk if self.held is None else torch.cat((self.held, chunk), dim=2)
            whole = x.shape[2] - x.shape[2] % self.number
            self.held = x[:, :, whole:].clone() if whole < x.shape[2] else None
            if whole:
                return x[:, :, :whole]
        if self.held is None:
            raise StopIteration
        last, self.held = self.held, None
        missing = torch.zeros_like(last[:, :, :1]).expand(-1, -1, -last.shape[2] % self.number, *last.shape[3:])
        return torch.cat((last, missing), dim=2)


class Together(Iterator[tuple[Tensor, ...]]):
    """Chunks of several streams, cut so that they cover the same planes, until one stream ends."""

    def __init__(self, *streams: Chunks) -> None:
        self.streams = streams
        self.held: list[Tensor | None] = [None] * len(streams)

    def __next__(self) -> tuple[Tensor, ...]:
        chunks = [next(s) if held is None else held for s, held in zip(self.streams, self.held, strict=True)]
        planes = min(chunk.shape[2] for chunk in chunks)
        self.held = [chunk[:, :, planes:] if chunk.shape[2] > planes else None for chunk in chunks]
        return tuple(chunk[:, :, :planes] for chunk in chunks)
