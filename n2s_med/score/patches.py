"""Where training patches come from: volumes, their held-out voxels, and a reproducible sampler."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from n2s_med.errors import InputError
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.values import some_places, unravelled
from n2s_med.score.orientations import Orientation, axis_orders

HELD_OUT_EDGE = 12
HELD_OUT_CONTEXT = 4
HELD_OUT_BLOCKS = 32
"""Size of a held-out block, of the context around it that its figure sees, and how many there are at most."""

TELLING, TELLING_SHARE = 30_000, 0.15
"""So many voxels are held out at least, or this share of what there is: of fewer the figure is mostly chance. Of 6000,
it preferred weights that were 1 to 2 dB worse where the noise is correlated or the volume smooth."""

STRATA = 8
PLACES = 512
STRATIFIED = 0.3
"""Intensity bins, voxels remembered in each, and share of the patches laid on one of them: so small hot spots
are learned too."""

CENTRED_BY = 100_000
"""Values whose median is a volume's centre, at most."""

DRAWS = 10
"""How often a patch that is mostly padding, or without noise, is drawn anew."""


@dataclass(frozen=True)
class UnitVolume:
    """A noisy volume in the unit-noise domain.

    Attributes
    ----------
    u
        Float32 tensor of shape (X, Y, Z) or (X, Y), in standard deviations of the noise.
    valid
        Boolean tensor of the same shape; False is padding.
    noise
        Its noise.
    spacing_mm
        Voxel spacing along each axis.
    """

    u: Tensor
    valid: Tensor
    noise: ScanNoise
    spacing_mm: tuple[float, ...]

    @property
    def centre(self) -> float:
        """Median of the valid data."""
        return float(self.u[some_places(self.valid, CENTRED_BY)].median())

    def fingerprint(self) -> str:
        """SHA-256 of the data, in hexadecimal."""
        digest = hashlib.sha256(str(tuple(self.u.shape)).encode())
        digest.update(f"{self.noise.law} {self.noise.quantum} {self.spacing_mm}".encode())
        for tensor in (self.u, self.valid, self.noise.correlation.kernel):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def axis_orders(self) -> list[tuple[int, ...]]:
        """Permutations of the axes under which spacing and correlation stay what they are."""
        return axis_orders(self.spacing_mm[: self.u.ndim], self.noise.correlation)


@dataclass(frozen=True)
class Patch:
    """A training patch of one volume.

    Attributes
    ----------
    u
        Data, shape (1, 1, spatial).
    weight
        Loss weight, 0 on padding and held-out voxels; same shape.
    noise
        Noise of its volume.
    order, flips
        Augmentation: a permutation of the spatial axes, then axes to flip.
    """

    u: Tensor
    weight: Tensor
    noise: ScanNoise
    order: tuple[int, ...]
    flips: tuple[int, ...]

    def augment(self, v: Tensor) -> Tensor:
        """Permute and flip a batch (N, 1, spatial)."""
        return Orientation(self.order, self.flips).laid(v)

    def restore(self, v: Tensor) -> Tensor:
        """Undo :meth:`augment`."""
        return Orientation(self.order, self.flips).restored(v)


@dataclass(frozen=True)
class HeldOut:
    """A held-out block with its surroundings; ``inside`` (same shape as ``u``) marks the block."""

    u: Tensor
    inside: Tensor
    noise: ScanNoise


class PatchSource(Protocol):
    """What training draws from.

    Attributes
    ----------
    held_out
        Blocks for the clean-free figure, never drawn.
    spatial_dims
        2 or 3.
    centre
        A typical unit-noise value.
    """

    held_out: Sequence[HeldOut]
    spatial_dims: int
    centre: float

    def begin(self, step: int) -> None:
        """Prepare for the draws of a training step; they depend on its number and generator alone."""
        ...

    def draw(self, generator: torch.Generator) -> Patch:
        """Draw one patch."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the draws, in hexadecimal."""
        ...


class PatchSampler:
    """Draws training patches from volumes and keeps the held-out blocks.

    Parameters
    ----------
    volumes
        Noisy volumes in the unit-noise domain.
    edge
        Edge of a patch in voxels; shorter axes are taken whole.
    held_out
        Fraction of the voxels to keep out of the loss.
    seed
        Seed of the choice of held-out blocks.
    """

    def __init__(self, volumes: Sequence[UnitVolume], *, edge: int, held_out: float, seed: int) -> None:
        if not volumes:
            raise InputError("no volume to train on", remedy="give at least one readable scan")
        self.volumes, self.edge = list(volumes), edge
        self.spatial_dims = volumes[0].u.ndim
        self.centre = float(torch.tensor([volume.centre for volume in volumes]).median())
        self.shares = torch.tensor([float(v.valid.sum()) for v in volumes], dtype=torch.float64)
        self.orders = [v.axis_orders() for v in volumes]
        self.weights = [v.valid.clone() for v in volumes]
        generator = torch.Generator().manual_seed(seed)
        self.held_out: Sequence[HeldOut] = self._hold_out(held_out, generator)
        self.places = [_places(v.u, w, generator) for v, w in zip(volumes, self.weights, strict=True)]

    def _hold_out(self, fraction: float, generator: torch.Generator) -> list[HeldOut]:
        """Cut blocks out of the loss weights until ``fraction`` of the voxels, or enough of them, is reached."""
        voxels = math.prod(_held_out_edges(self.volumes[0]))
        valid = float(self.shares.sum())
        least = min(TELLING, TELLING_SHARE * valid) if fraction else 0.0
        wanted = min(HELD_OUT_BLOCKS, round(max(fraction * valid, least) / voxels))
        blocks = []
        for _ in range(max(wanted, 1 if fraction else 0)):
            index = int(torch.multinomial(self.shares, 1, generator=generator))
            volume = self.volumes[index]
            edges = _held_out_edges(volume)
            corner = noisy_corner(volume.u, volume.valid, edges, generator)
            block = tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))
            weights = self.weights[index]
            if 2 * int(weights[block].sum()) > int(weights.sum()):
                continue  # a small organ would leave nothing to learn from
            weights[block] = False
            around = tuple(
                slice(max(0, s.start - HELD_OUT_CONTEXT), min(n, s.stop + HELD_OUT_CONTEXT))
                for s, n in zip(block, volume.u.shape, strict=True)
            )
            inside = torch.zeros_like(volume.valid)
            inside[block] = volume.valid[block]
            blocks.append(HeldOut(volume.u[around][None, None], inside[around][None, None], volume.noise))
        return blocks

    def begin(self, step: int) -> None:
        """Nothing: every step draws from the same volumes."""

    def fingerprint(self) -> str:
        """SHA-256 over the volumes, in hexadecimal."""
        return hashlib.sha256("".join(v.fingerprint() for v in self.volumes).encode()).hexdigest()

    def draw(self, generator: torch.Generator) -> Patch:
        """Draw one patch; volumes come in proportion to their voxels."""
        index = int(torch.multinomial(self.shares, 1, generator=generator))
        volume = self.volumes[index]
        edges = (self.edge,) * volume.u.ndim
        if float(torch.rand((), generator=generator)) < STRATIFIED:
            strata = self.places[index]
            places = strata[int(torch.randint(len(strata), (), generator=generator))]
            corner = _corner_by(_one_of(places, generator), edges, volume.u.shape, generator)
        else:
            corner = noisy_corner(volume.u, volume.valid, edges, generator)
        cut = tuple(slice(c, c + self.edge) for c in corner)
        orders = self.orders[index]
        order = orders[int(torch.randint(len(orders), (), generator=generator))]
        flipped = torch.rand(volume.u.ndim, generator=generator) < 0.5
        return Patch(
            volume.u[cut][None, None],
            self.weights[index][cut][None, None].float(),
            volume.noise,
            order,
            tuple(axis for axis in range(volume.u.ndim) if flipped[axis]),
        )


class Boxes(Protocol):
    """Data of which boxes can be taken."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, region: tuple[slice, ...]) -> Tensor: ...


def noisy_corner(u: Boxes, valid: Tensor, edges: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
    """A random corner whose block is mostly valid and holds noise, if one is found in a few draws."""
    for _ in range(DRAWS):
        corner = tuple(
            int(torch.randint(max(1, n - e + 1), (), generator=generator)) for n, e in zip(u.shape, edges, strict=True)
        )
        cut = tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))
        inside = valid[cut]
        if inside.float().mean() > 0.5 and u[cut][inside].std(correction=0) > 0.5:
            return corner
    per_plane = valid.flatten(1).sum(1).double()
    plane = int(torch.multinomial(per_plane, 1, generator=generator))
    place = _one_of(valid[plane].nonzero(), generator)
    return _corner_by((plane, *place), edges, u.shape, generator)


def _one_of(places: Tensor, generator: torch.Generator) -> tuple[int, ...]:
    """One of the voxels in the rows of ``places``."""
    return tuple(places[int(torch.randint(len(places), (), generator=generator))].tolist())


def _corner_by(
    voxel: Sequence[int], edges: Sequence[int], shape: Sequence[int], generator: torch.Generator
) -> tuple[int, ...]:
    """A random corner whose block holds ``voxel``."""
    return tuple(
        min(max(0, v - int(torch.randint(e, (), generator=generator))), max(0, n - e))
        for v, e, n in zip(voxel, edges, shape, strict=True)
    )


def _places(u: Tensor, learned: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Learned voxels of evenly spaced intensities, rows of (number, axes) for each that there is."""
    inside = u[learned]
    bounds = torch.linspace(float(inside.min()), float(inside.max()), STRATA + 1)[1:-1]
    stratum = torch.bucketize(u.contiguous(), bounds).to(torch.uint8).masked_fill(~learned, STRATA).flatten()
    places = []
    for number, count in enumerate(stratum.bincount(minlength=STRATA + 1)[:STRATA].tolist()):
        if count:
            sparse = stratum[:: 1 + count // (8 * PLACES)] == number
            found = sparse.nonzero()[:, 0] * (1 + count // (8 * PLACES))
            chosen = found[torch.randperm(len(found), generator=generator)[:PLACES]]
            places.append(torch.stack(unravelled(chosen, u.shape), dim=1))
    return [rows for rows in places if len(rows)]


def _held_out_edges(volume: UnitVolume) -> tuple[int, ...]:
    """Edges of a held-out block: a third of a short axis, so that small volumes keep voxels to learn from."""
    return tuple(max(1, min(HELD_OUT_EDGE, n // 3)) for n in volume.u.shape)
