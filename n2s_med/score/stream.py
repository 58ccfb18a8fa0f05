"""A score network over a volume of any length, a few planes at a time.

Every layer is an iterator: it takes chunks of planes, gives chunks of planes, and keeps back no more than its kernel
needs, two planes for a convolution. So each voxel of each layer is computed once, without the halos of tiles; memory
does not grow with the number of planes; and the result is that of the whole volume in one piece, whatever the chunks.
Several flips of a volume go side by side: what does not depend on the flip is computed once for all of them.

Planes lie along the last axis of a volume, and along the first spatial axis of everything in here, where convolutions
run over long rows of memory; so the kernels are turned too.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from n2s_med.compute import Compute
from n2s_med.score.network import SLOPE, ScoreUNet

Chunks = Iterator[Tensor]
"""Tensors (N, C, planes, rest of the volume), one after the other along the planes."""

Flip = tuple[int, ...]
"""Axes of a volume, but not that of the planes."""

Put = Callable[[Tensor, Tensor], object]
"""Writes what is made of its first argument into its second."""


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

    def __call__(self, chunks: Iterable[Tensor], flips: Sequence[Flip] = ((),)) -> Iterator[Tensor]:
        """Give the score of the chunks, in chunks of other lengths.

        Parameters
        ----------
        chunks
            Float32 unit-noise data (N, X[, Y], planes).
        flips
            Over these the score is averaged; axes are counted without N.

        Returns
        -------
        Iterator of Tensor
            Float32 on the CPU, laid out like the input, as many planes in all.
        """
        given = iter(chunks)
        first = next(given, None)
        if first is None:
            return iter(())
        _, *size, planes = first.shape
        details: deque[Tensor] = deque()
        turned = map(self._turned, itertools.chain(_taken_up(deque([first])), given))
        del first
        shared = Shared(self._features(details, Windows(turned, 1, repeat=True)), len(flips))
        axes = [tuple(axis + 3 for axis in flip) for flip in flips]
        answers = [self._unet(map(partial(self._laid, a), shared.stream(n)), planes) for n, a in enumerate(axes)]
        judged = map(self._judged, Windows(_taken_up(details), 1, repeat=True))
        mean = map(partial(_mean, axes, size), zip(*answers, strict=True))
        return itertools.starmap(self._score, Together(mean, judged))

    def _turned(self, chunk: Tensor) -> Tensor:
        """A chunk with its planes first, on the device."""
        return chunk.movedim(-1, 1)[:, None].to(self.compute.device)

    def _judged(self, window: Tensor) -> Tensor:
        """Detail, and behind it where that is noise, from a window of one plane more on either side."""
        return torch.cat((window[:, :, 1:-1], self.network.noisy(window)[:, :, 1:-1]))

    def _score(self, correction: Tensor, judged: Tensor) -> Tensor:
        """The score of some planes, turned back."""
        detail, noisy = judged.chunk(2)
        return self.network.score(correction, detail, noisy, self.traits)[:, 0].movedim(1, -1).cpu()

    def _features(self, details: deque[Tensor], windows: Chunks) -> Chunks:
        """What the first convolution sees of the windows' inner planes; zeros fill the coarsest voxel at the end."""
        planes = 0
        for window in windows:
            detail, base = (part[:, :, 1:-1] for part in self.network.split(window))
            details.append(detail.clone())
            x = self.network.features(detail, base).to(self.dtype, memory_format=self.layout)
            planes += x.shape[2]
            del window, detail, base  # this waits while the layers run
            yield x
        if missing := -planes % self.network.stride:
            yield torch.zeros_like(x[:, :, :1]).expand(-1, -1, missing, *x.shape[3:])

    def _laid(self, axes: Flip, x: Tensor) -> Tensor:
        """Features flipped, and padded to the coarsest voxel within the plane."""
        if axes:
            x = x.flip(axes)
        pads = [p for n in reversed(x.shape[3:]) for p in (0, -n % self.network.stride)]
        return F.pad(x, pads) if any(pads) else x

    def _unet(self, x: Chunks, planes: int) -> Chunks:
        """The layers of the network in their order; a skip waits until the way up has come to its planes.

        What follows a convolution is done by who takes its answer, on the way into the next one's window.
        """
        skips: list[deque[Tensor]] = [deque() for _ in self.network.up]
        least = [max(1, (planes >> level) // 2) for level in range(len(self.network.channels))]
        x = Windows(x, 1, least=least[0])
        for n, level in enumerate(self.network.encoder):
            if n:
                pairs = Windows(x, 0, multiple=2, least=least[n - 1], put=_activate)
                x = map(partial(_put_down, skips[n - 1]), pairs)
            x = _convolutions(level.layers, x, least[n])
        for n in reversed(range(len(skips))):
            x = map(partial(_risen, self.network.up[n], skips[n]), x)
            if layers := self.network.decoder[n].layers:
                x = _convolutions(layers, Windows(x, 1, least=least[n], put=_activate), least[n])
        return map(self.network.head, Windows(x, 1, least=least[0], put=_activate))


def _convolutions(layers: Iterable[nn.Module], windows: Chunks, least: int) -> Chunks:
    """A level's convolutions, one after the other; the last is not yet activated."""
    first, *others = layers
    x: Chunks = map(first, windows)
    for layer in others:
        x = map(layer, Windows(x, 1, least=least, put=_activate))
    return x


def _copy(chunk: Tensor, out: Tensor) -> None:
    out.copy_(chunk)


def _activate(chunk: Tensor, out: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(chunk, SLOPE, out=out)


def _risen(up: nn.Module, skip: deque[Tensor], chunk: Tensor) -> Tensor:
    """What the finer level goes on with, not yet activated: a chunk of the coarser one, and what was kept of this."""
    _activate(chunk, chunk)
    x: Tensor = up(chunk)
    done = 0
    while done < x.shape[2]:
        kept = skip.popleft()
        planes = min(kept.shape[2], x.shape[2] - done)
        x[:, :, done : done + planes].add_(kept[:, :, :planes])
        if planes < kept.shape[2]:
            skip.appendleft(kept[:, :, planes:])
        done += planes
    return x


def _mean(axes: Sequence[Flip], size: Sequence[int], answers: Sequence[Tensor]) -> Tensor:
    """The mean over the flips, turned back, without what was padded."""
    inside = (slice(None),) * 3 + tuple(slice(0, n) for n in size)
    first, *others = (x[inside].flip(a).float() for x, a in zip(answers, axes, strict=True))
    for other in others:
        first += other
    return first / len(answers) if others else first


def _put_down(waiting: deque[Tensor], chunk: Tensor) -> Tensor:
    """The chunk, kept for later too."""
    waiting.append(chunk)
    return chunk


def _taken_up(waiting: deque[Tensor]) -> Chunks:
    """What was put down; to be asked for only when there is some or no more will come. (``tee`` frees it too late.)"""
    while waiting:
        yield waiting.popleft()


class Shared:
    """One stream for several that go side by side."""

    def __init__(self, chunks: Chunks, number: int) -> None:
        self.chunks = chunks
        self.waiting: list[deque[Tensor]] = [deque() for _ in range(number)]

    def stream(self, number: int) -> Chunks:
        """One of the several."""
        mine = self.waiting[number]
        while mine or self._more():
            yield mine.popleft()

    def _more(self) -> bool:
        """Whether there was another chunk, which every stream then has."""
        for chunk in itertools.islice(self.chunks, 1):
            for each in self.waiting:
                each.append(chunk)
            return True
        return False


# These two are classes, not generators: what a generator's variables hold, it holds while it waits.


class Windows(Iterator[Tensor]):
    """Chunks with ``margin`` planes of their neighbours on either side, in memory of their own.

    Parameters
    ----------
    chunks
        The chunks.
    margin
        Planes on either side. Beyond the ends there are zeros, or the end plane if ``repeat``.
    multiple
        Without its margins each has a multiple of this many planes, which all chunks together have too.
    least
        Chunks are joined until they have so many planes.
    put
        Writes a chunk to its place in a window.
    """

    def __init__(
        self, chunks: Chunks, margin: int, *, multiple: int = 1, least: int = 1, put: Put = _copy, repeat: bool = False
    ) -> None:
        self.chunks, self.margin, self.multiple, self.least = chunks, margin, multiple, least
        self.put, self.repeat = put, repeat
        self.held: Tensor | None = None
        self.ended = False

    def __next__(self) -> Tensor:
        while not self.ended:
            parts = self._parts()
            if not parts and self.held is None:
                break
            window = self._window(parts)
            inner = window.shape[2] - 2 * self.margin
            inner -= inner % self.multiple
            rest = window[:, :, max(0, inner) :]
            self.held = rest.clone() if rest.shape[2] and not self.ended else None
            if inner > 0:
                return window[:, :, : inner + 2 * self.margin]
        raise StopIteration

    def _parts(self) -> list[Tensor]:
        """The next chunks, of as many planes as are joined."""
        parts: list[Tensor] = []
        while sum(part.shape[2] for part in parts) < self.least:
            chunk = next(self.chunks, None)
            if chunk is None:
                self.ended = True
                break
            parts.append(chunk)
        return parts

    def _window(self, parts: Sequence[Tensor]) -> Tensor:
        """What is held, the chunks, and what lies beyond the volume."""
        held = self.held
        if not self.margin and held is None and len(parts) == 1:
            self.put(parts[0], parts[0])
            return parts[0]
        like = parts[0] if held is None else held
        before = self.margin if held is None else held.shape[2]
        after = self.margin if self.ended else 0
        planes = before + sum(part.shape[2] for part in parts) + after
        window = _empty(like, planes)
        place = before
        for part in parts:
            self.put(part, window[:, :, place : (place := place + part.shape[2])])
        if held is not None:
            window[:, :, :before] = held
        else:
            window[:, :, :before] = window[:, :, before : before + 1] if self.repeat else 0
        if after:
            window[:, :, place:] = window[:, :, place - 1 : place] if self.repeat else 0
        return window


def _empty(like: Tensor, planes: int) -> Tensor:
    """Memory for so many planes, channels last where there are several."""
    shape = (*like.shape[:2], planes, *like.shape[3:])
    layout = (torch.channels_last_3d if len(shape) == 5 else torch.channels_last) if shape[1] > 1 else None
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout or torch.contiguous_format)


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
