"""A score network over a volume of any length, a few planes at a time.

Every layer is an iterator: it takes chunks of planes, gives chunks of planes, and keeps back no more than its kernel
needs, two planes for a convolution. So each voxel of each layer is computed once, without the halos of tiles; memory
does not grow with the number of planes; and the result is that of the whole volume in one piece, whatever the chunks.
Passes of several orientations go side by side: what does not depend on the orientation is computed once for all.

Planes lie along the last axis of a volume, and along the first spatial axis of everything in here.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from n2s_med.compute import Compute
from n2s_med.score.blocks import voxels
from n2s_med.score.inference import Layers
from n2s_med.score.network import SLOPE, ScoreUNet, filled, mirrored
from n2s_med.score.orientations import Orientation

Chunks = Iterator[Tensor]
"""Tensors (N, C, planes, rest of the volume), one after the other along the planes."""

LARGE = 1 << 16
"""Voxels of a plane from which memory counts for more than time: passes better go one after the other then, and what
waits for the way up of the finest level, three quarters of a kilobyte a voxel of the plane, is computed again."""

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
    ways
        Orientations over which the score is averaged; the volume as it lies if not given.
    """

    def __init__(
        self, network: ScoreUNet, traits: Tensor, compute: Compute, ways: Sequence[Orientation] | None = None
    ) -> None:
        self.compute = compute
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        as_it_lies = Orientation(tuple(range(network.spatial_dims)))
        turned = [way.of(self.network) for way in ways or [as_it_lies]]
        for level in itertools.chain.from_iterable(each.encoder for each in turned):
            level.tell(traits)
        self.layers = [Layers(each, compute) for each in turned]
        self.network.centre = network.centre.to(compute.device)
        self.traits = traits[None].to(compute.device)

    def __call__(self, chunks: Iterable[Tensor], passes: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Give the score of the chunks, in chunks of other lengths.

        Parameters
        ----------
        chunks
            Float32 unit-noise data (1, X[, Y], planes).
        passes
            Numbers of the orientations over which this averages; all if not given.

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
        turned = Filled(map(self._turned, itertools.chain(_taken_up(deque([first])), given)), self.network.stride)
        del first
        layers = self.layers if passes is None else [self.layers[n] for n in passes]
        twice = math.prod(size) > LARGE and len(self.network.channels) > 1
        shared = Shared(self._features(details, Windows(turned, 1, repeat=True)))
        answers = [_unet(each, planes, shared.stream(), shared.stream() if twice else None) for each in layers]
        judged = map(self._judged, Windows(_taken_up(details), 1, repeat=True))
        mean = map(partial(_mean, [n + -n % self.network.stride for n in size]), zip(*answers, strict=True))
        scores = itertools.starmap(self._score, Together(_but_first(mean), judged))
        return map(partial(_within, size), turned.emptied(scores))

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
        """What the first convolution sees of the windows' inner planes."""
        layers = self.layers[0]
        for window in windows:
            detail, base = (part[:, :, 1:-1] for part in self.network.split(window))
            details.append(detail.clone())
            x = self.network.features(detail, base).to(layers.dtype).contiguous(memory_format=layers.layout)
            del window, detail, base  # this waits while the layers run
            yield x


def _unet(layers: Layers, planes: int, x: Chunks, again: Chunks | None) -> Chunks:
    """The layers of the network in their order; a skip waits until the way up has come to its planes.

    That of the finest level is computed again where the features are given again, and wait in its place.

    What oneDNN does not do in passing is done by who takes a convolution's answer, on the way into the next one's
    window. The answer comes in voxels; its first plane, row and column lie before the volume.
    """
    put = given = _copy if layers.fused else _activate
    skips: list[deque[Tensor]] = [deque() for _ in layers.up]
    least = [max(1, (planes >> level) // 2) for level in range(len(layers.encoder) + 1)]

    def finest(features: Chunks) -> Chunks:
        return map(layers.stem.activated, Windows(features, 1, multiple=2, least=least[0]))

    x = finest(x)
    for n, down in enumerate(layers.down, 1):
        whole = Windows(x, 0, multiple=down.stride, put=put)
        kept = whole if again and n == 1 else map(partial(_put_down, skips[n - 1]), whole)
        x = map(down.activated, kept)
        for layer in layers.encoder[n]:
            x = map(layer.activated, Windows(x, 1, least=least[n], put=put))
    for n in reversed(range(len(skips))):
        x = map(partial(_in_place, put), x)
        skip = _taken_up(skips[n]) if n or not again else map(partial(_in_place, given), finest(again))
        if n:
            x, put = itertools.starmap(_added, Together(map(layers.up[n], x), skip)), _activate
        else:
            x, put = itertools.starmap(layers.up[n].added, Together(x, skip)), _activate
        for layer in layers.decoder[n]:
            x, put = map(layer.activated, Windows(x, 1, least=least[n], put=put)), given
    return map(voxels, map(layers.head, Windows(x, 1, overlap=1, least=least[1], put=put)))


def _copy(chunk: Tensor, out: Tensor) -> None:
    out.copy_(chunk)


def _activate(chunk: Tensor, out: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(chunk, SLOPE, out=out)


def _added(risen: Tensor, there: Tensor) -> Tensor:
    return there.add_(risen)


def _in_place(put: Put, chunk: Tensor) -> Tensor:
    put(chunk, chunk)
    return chunk


def _mean(size: Sequence[int], answers: Sequence[Tensor]) -> Tensor:
    """The mean over the orientations, without what lies around planes of this size."""
    inside = (slice(None),) * 3 + tuple(slice(1, n + 1) for n in size)
    first, *others = (x[inside].float() for x in answers)
    for other in others:
        first += other
    return first / len(answers) if others else first


def _within(size: Sequence[int], score: Tensor) -> Tensor:
    """The score without what was filled in within the planes."""
    return score[:, *(slice(n) for n in size)]


def _but_first(chunks: Chunks) -> Chunks:
    """The chunks without their first plane."""
    for first in itertools.islice(chunks, 1):
        yield first[:, :, 1:]
    yield from chunks


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

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.waiting: list[deque[Tensor]] = []

    def stream(self) -> Chunks:
        """One of the several, all of which are to be had before the first is asked for a chunk."""
        mine: deque[Tensor] = deque()
        self.waiting.append(mine)
        return self._stream(mine)

    def _stream(self, mine: deque[Tensor]) -> Chunks:
        while mine or self._more():
            yield mine.popleft()

    def _more(self) -> bool:
        """Whether there was another chunk, which every stream then has."""
        for chunk in itertools.islice(self.chunks, 1):
            for each in self.waiting:
                each.append(chunk)
            return True
        return False


# These are classes, not generators: what a generator's variables hold, it holds while it waits.


class Filled(Iterator[Tensor]):
    """Chunks, mirrored at their far ends to sizes that a stride divides."""

    def __init__(self, chunks: Chunks, stride: int) -> None:
        self.chunks, self.stride = chunks, stride
        self.planes = 0
        self.newest: Tensor | None = None

    def __next__(self) -> Tensor:
        chunk = next(self.chunks, None)
        if chunk is not None:
            self.planes += chunk.shape[2]
            if chunk.shape[2] < self.stride and self.newest is not None:
                self.newest = torch.cat((self.newest, chunk), 2)[:, :, -self.stride :]
            else:
                self.newest = chunk[:, :, -self.stride :].clone()  # and not the slab of a volume that it is part of
        elif self.newest is not None and (missing := -self.planes % self.stride):
            chunk, self.newest = mirrored(self.newest, 2, missing), None
        else:
            raise StopIteration
        return filled(chunk, self.stride, first=3)

    def emptied(self, scores: Iterable[Tensor]) -> Chunks:
        """Of scores of the chunks, planes last, those of planes that were not mirrored."""
        done = 0
        for score in scores:
            if done < self.planes:  # those that are mirrored come when all others have been asked for
                yield score[..., : self.planes - done]
            done += score.shape[-1]


class Windows(Iterator[Tensor]):
    """Chunks with the planes around them that a kernel needs.

    Thin windows share memory: one that overlaps the next is there until that is asked for.

    Parameters
    ----------
    chunks
        The chunks.
    margin
        Planes beyond either end: zeros, or the end plane if ``repeat``.
    overlap
        Planes that a window shares with the next; twice the margin if not given.
    multiple
        Without its overlap each has a multiple of this many planes, which all windows together have too.
    least
        Chunks are joined until they have so many planes.
    put
        Writes a chunk to its place in a window.
    """

    def __init__(
        self,
        chunks: Chunks,
        margin: int,
        *,
        overlap: int | None = None,
        multiple: int = 1,
        least: int = 1,
        put: Put = _copy,
        repeat: bool = False,
    ) -> None:
        self.chunks, self.margin, self.multiple, self.least = chunks, margin, multiple, least
        self.overlap = 2 * margin if overlap is None else overlap
        self.put, self.repeat = put, repeat
        self.room: Tensor | None = None
        self.start = self.end = 0
        self.ended = False

    def __next__(self) -> Tensor:
        while not self.ended:
            parts = self._parts()
            if not parts and self.room is None:
                break
            window = self._window(parts)
            inner = window.shape[2] - self.overlap
            inner -= inner % self.multiple
            if inner > 0:
                self.start += inner
                if not self._thin(inner):
                    rest = window[:, :, inner:]
                    self.room, self.start, self.end = rest.clone() if rest.shape[2] else None, 0, rest.shape[2]
                return window[:, :, : inner + self.overlap]
        raise StopIteration

    def _thin(self, planes: int) -> bool:
        """Whether windows are no longer than what they share, so that copying that would take as long as the rest."""
        return planes <= self.overlap

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
        if self.room is None and not self.margin and len(parts) == 1:
            self.put(parts[0], parts[0])
            self.room, self.end = parts[0], parts[0].shape[2]
            return parts[0]
        before = self.margin if self.room is None else 0
        after = self.margin if self.ended else 0
        room = self._room(parts, before + sum(part.shape[2] for part in parts) + after)
        place = self.end + before
        for part in parts:
            self.put(part, room[:, :, place : (place := place + part.shape[2])])
        if before:
            room[:, :, :before] = room[:, :, before : before + 1] if self.repeat else 0
        if after:
            room[:, :, place : place + after] = room[:, :, place - 1 : place] if self.repeat else 0
        self.end = place + after
        return room[:, :, self.start : self.end]

    def _room(self, parts: Sequence[Tensor], planes: int) -> Tensor:
        """Memory that holds what is held, and has place behind it for so many planes."""
        room, held = self.room, self.end - self.start
        if room is not None and self.end + planes <= room.shape[2]:
            return room
        other = room
        if other is None or 2 * held + planes > other.shape[2]:  # else what is held does not move onto itself
            like = parts[0] if room is None else room
            other = _empty(like, held + planes * (2 if self._thin(planes) else 1))
        if room is not None:
            other[:, :, :held] = room[:, :, self.start : self.end]
        self.room, self.start, self.end = other, 0, held
        return other


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
