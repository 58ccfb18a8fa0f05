"""From a noisy volume, its noise and a score network to the denoised volume.

    y  →  u = T(y)  →  Σ s(u), tile by tile  →  Tweedie's formula  →  x_hat

The volume is tiled with halos as wide as the network sees, so the result does not depend on the tiles; what
is in memory at once is the input, the output and one tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from n2s_med.compute import Compute
from n2s_med.errors import InputError
from n2s_med.noise import NoiseModel
from n2s_med.noise.scan import ScanNoise
from n2s_med.score.model import ScoreModel
from n2s_med.score.patches import PatchSampler, UnitVolume
from n2s_med.score.stein import PROBE_STEP, risk_terms, step_terms
from n2s_med.tiling import Region, grown, sizes, tile_edges, tiles, within
from n2s_med.uncertainty import MARGIN, Curve, smoothed_variance

Progress = Callable[[int, int], None]
"""Called with the tiles done and the tiles in all."""

Flips = Sequence[tuple[int, ...]]
"""Axes to flip, one entry for each pass of the network."""

Read = Callable[[Region], Tensor]
"""Gives the unit-noise data of a region of the volume."""

SURE_EDGE = 40
SURE_PATCHES = 4
"""Edge and number of the patches on which the step length and SURE are measured."""

STEP_RANGE = (0.0, 1.05)
"""The step from SURE is kept within this range: far below one, the level does not hold, little is
taken away and the figures say so; above one, more than the noise would be."""


@dataclass(frozen=True)
class DenoiseOptions:
    """How to denoise.

    Attributes
    ----------
    flips
        Average over all flips of the volume.
    tile_voxels
        Voxels of one tile with its halo; bounds the memory.
    formula
        ``"mean"`` (:meth:`~n2s_med.noise.NoiseModel.mean_from_unit`) or ``"published"``
        (:meth:`~n2s_med.noise.NoiseModel.tweedie_from_unit`).
    step
        Length of the step along the score; ``None`` takes it from SURE.
    sd_probes
        Probes of the uncertainty map, an even number; 0 makes none.
    seed
        Seed of the probes.
    """

    flips: bool = True
    formula: Literal["mean", "published"] = "mean"
    tile_voxels: int = 4_000_000
    step: float | None = None
    sd_probes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Figures:
    """Clean-free figures of one denoised volume.

    Attributes
    ----------
    step
        Step length along the score that was used.
    step_sure
        The one that SURE finds: 1 where law, level and network are right.
    risk
        Estimated mean squared error (SURE, PURE) in the same units; the noisy volume has 1.
    """

    step: float
    step_sure: float
    risk: float


@dataclass(frozen=True)
class Denoised:
    """A denoised volume with its clean-free figures.

    Attributes
    ----------
    x_hat
        Float32 (X, Y, Z), in the units of the input; padding is as it came in.
    sd
        Posterior standard deviation of each voxel, same units, or ``None``; 0 on padding.
    figures
        What was measured without a clean image.
    """

    x_hat: Tensor
    sd: Tensor | None
    figures: Figures


class Denoiser:
    """Applies one score model to volumes of one noise.

    Parameters
    ----------
    model
        Score model; one of two dimensions takes volumes of one slice.
    noise
        Noise of the volumes.
    compute
        Device and number type.
    options
        How to denoise.
    """

    def __init__(
        self, model: ScoreModel, noise: ScanNoise, compute: Compute, options: DenoiseOptions | None = None
    ) -> None:
        self.scale, self.noise, self.compute = model.scale, noise, compute
        self.options = options or DenoiseOptions()
        self.network = model.network.to(compute.device).eval()
        self.traits = noise.correlation.traits[None].to(compute.device)
        self.flips = _flips(self.network.spatial_dims) if self.options.flips else [()]

    @torch.no_grad()
    def __call__(self, y: Tensor, valid: Tensor | None = None, progress: Progress | None = None) -> Denoised:
        """Denoise one volume.

        Parameters
        ----------
        y
            Noisy volume (X, Y, Z), in the units of the noise law; Z is 1 for a 2D network.
        valid
            Boolean volume; False is padding, and comes back unchanged.
        progress
            Called with tiles done and tiles in all.

        Raises
        ------
        InputError
            If nothing of the volume is valid, or all of it is constant.
        """
        law = self.noise.law
        shape = y.shape[: self.network.spatial_dims]
        y_flat = y.reshape(shape)
        admitted = self.noise.admits(y_flat)
        valid = admitted if valid is None else valid.reshape(shape) & admitted
        u = to_unit(y_flat, valid, self.noise)
        figures, curve = self._measure(u, valid)
        x_hat = y_flat.clone()
        sd = torch.zeros_like(y_flat) if self.options.sd_probes else None
        plan = list(tiles(shape, tile_edges(shape, self._reach, self.options.tile_voxels)))
        for done, core in enumerate(plan, start=1):
            keep = valid[core]
            score_u = figures.step * self._score(u.__getitem__, shape, core, self.flips)
            local = law.at(core)
            estimate = self._estimate(local, y_flat[core], score_u)
            x_hat[core] = torch.where(keep, estimate, x_hat[core])
            if sd is not None:
                variance = local.variance(estimate) * curve(self._posterior_variance(u, core, figures.step))
                sd[core] = torch.where(keep, variance.sqrt(), 0.0)
            if progress:
                progress(done, len(plan))
        return Denoised(
            x_hat=x_hat.reshape(y.shape),
            sd=None if sd is None else sd.reshape(y.shape),
            figures=figures,
        )

    def _estimate(self, law: NoiseModel, y: Tensor, score_u: Tensor) -> Tensor:
        """``x_hat`` by the chosen formula."""
        if self.options.formula == "published":
            return law.tweedie_from_unit(y, score_u)
        return law.mean_from_unit(y, score_u)

    # -- the score field -------------------------------------------------------------------------------

    @property
    def _halo(self) -> tuple[int, ...]:
        return (self.network.receptive_radius,) * self.network.spatial_dims

    @property
    def _reach(self) -> tuple[int, ...]:
        """Voxels around a core that its result depends on."""
        margin = MARGIN if self.options.sd_probes else 0
        return tuple(halo + margin for halo in self._halo)

    def _network_score(self, v: Tensor) -> Tensor:
        """The score of a whole region (spatial), on the CPU in float32."""
        with self.compute.autocast():
            g: Tensor = self.network(self.compute.place(v[None, None]), self.traits)
        return g[0, 0].float().cpu() * self.scale

    def _score(self, read: Read, shape: Sequence[int], core: Region, flips: Flips) -> Tensor:
        """The network's score over ``core``, averaged over flips of the volume, the same at any tiling."""
        total = torch.zeros(sizes(core))
        for flip in flips:
            seen = grown(core, shape, self._halo, self.network.stride, flip)
            total += self._network_score(read(seen).flip(flip)).flip(flip)[within(core, seen)]
        return total / len(flips)

    def _color(self, white: Tensor, outer: Region, core: Region) -> Tensor:
        """``L white`` over ``core`` from ``white`` over ``outer``; beyond the volume, ``white`` is zero."""
        radius = self.noise.correlation.radius
        pad = [reach for r in reversed(radius) for reach in (r, r)]
        colored = self.noise.correlation.color(F.pad(white, pad))
        inside = within(core, outer)
        return colored[tuple(slice(s.start + r, s.stop + r) for s, r in zip(inside, radius, strict=True))]

    # -- what Stein's identities tell ------------------------------------------------------------------

    def _measure(self, u: Tensor, valid: Tensor) -> tuple[Figures, Curve]:
        """Step and risk, by one probe on a few patches that hold noise; and how the variance is calibrated."""
        generator = torch.Generator().manual_seed(self.options.seed)
        volume = UnitVolume(u, valid, self.noise, (1.0,) * u.ndim)
        sampler = PatchSampler([volume], edge=SURE_EDGE, held_out=0.0, seed=self.options.seed)
        patches = [sampler.draw(generator) for _ in range(SURE_PATCHES)]
        probes = [torch.randn(patch.u.shape, generator=generator) for patch in patches]
        correlation = self.noise.correlation

        def mean(maps: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
            weights = torch.cat([p.weight.flatten() for p in patches]).double()
            first, second = (torch.cat([m[k].flatten() for m in maps]).double() for k in (0, 1))
            return tuple(float((v * weights).sum() / weights.sum()) for v in (first, second))  # type: ignore[return-value]

        g = self._flip_averaged
        square, trace = mean([step_terms(g, p.u, correlation, w) for p, w in zip(patches, probes, strict=True)])
        best = -trace / square if square else 1.0
        step = self._step(best)

        def stepped(v: Tensor) -> Tensor:
            return step * g(v)

        risks = [risk_terms(stepped, p.u, self.noise, w) for p, w in zip(patches, probes, strict=True)]
        risk, variance = mean(risks)
        figures = Figures(step, best, risk / variance)
        if not self.options.sd_probes:
            return figures, Curve()
        whole = [tuple(slice(0, n) for n in p.u.shape[2:]) for p in patches]
        told = [self._posterior_variance(p.u[0, 0], box, step) for p, box in zip(patches, whole, strict=True)]
        inside = torch.cat([p.weight.flatten() for p in patches]) > 0
        error, scale = (torch.cat([r[k].flatten() for r in risks])[inside] for k in (0, 1))
        return figures, Curve.fitted(torch.cat([t.flatten() for t in told])[inside], error, scale)

    def _flip_averaged(self, v: Tensor) -> Tensor:
        """``g`` of one whole patch (1, 1, spatial), averaged over flips."""
        total = sum((self._network_score(v[0, 0].flip(f)).flip(f) for f in self.flips), torch.zeros(()))
        return (total / len(self.flips))[None, None]

    def _step(self, alpha: float) -> float:
        """The step to take: the one given, SURE's within its range, or 1 on a count lattice."""
        if self.options.step is not None:
            return self.options.step
        if self.noise.quantum:
            return 1.0
        return min(max(alpha, STEP_RANGE[0]), STEP_RANGE[1])

    # -- uncertainty -----------------------------------------------------------------------------------

    def _posterior_variance(self, u: Tensor, core: Region, step: float) -> Tensor:
        """``Var[x given u]`` over ``core`` in units of the noise variance, by probes, smoothed.

        Each probe ``L w`` times the response of ``x_hat`` to it has the posterior variance as its mean.
        """
        outer = grown(core, u.shape, (MARGIN,) * u.ndim)
        halves = torch.zeros(2, *sizes(outer))
        for index in range(self.options.sd_probes):
            ahead, behind = (
                self._score(self._shifted(u, index, way * PROBE_STEP), u.shape, outer, [()]) for way in (1, -1)
            )
            probe = self._probe(u.shape, outer, index)
            halves[index % 2] += probe * (probe + step * (ahead - behind) / (2 * PROBE_STEP))
        halves *= 2 / self.options.sd_probes
        return smoothed_variance(halves[0], halves[1])[within(core, outer)]

    def _shifted(self, u: Tensor, index: int, distance: float) -> Read:
        """``u`` moved along a probe."""
        return lambda seen: u[seen] + distance * self._probe(u.shape, seen, index)

    def _probe(self, shape: Sequence[int], core: Region, index: int) -> Tensor:
        """``L w`` over ``core``; ``w`` is ±1 and depends on the place in the volume alone."""
        outer = grown(core, shape, self.noise.correlation.radius)
        planes = []
        for plane in range(outer[0].start, outer[0].stop):
            generator = torch.Generator().manual_seed((self.options.seed * 64 + index) * 1_000_003 + plane)
            signs = torch.randint(0, 2, tuple(shape[1:]), generator=generator)
            planes.append(signs[outer[1:]] * 2.0 - 1.0)
        return self._color(torch.stack(planes), outer, core)


def to_unit(y: Tensor, valid: Tensor, noise: ScanNoise, generator: torch.Generator | None = None) -> Tensor:
    """``T(y)`` in float32, with padding filled by the low end of the valid values.

    Parameters
    ----------
    y, valid
        Volume in the units of the scan, and where it holds data.
    noise
        Its noise.
    generator
        Spreads whole counts over their cells, for training; without it they stay what they are.

    Raises
    ------
    InputError
        If nothing is valid, or all valid values are equal.
    NoiseLawError
        Where valid values lie outside the law's domain.
    """
    inside = y[valid]
    if inside.numel() == 0:
        raise InputError("every voxel is padding or outside the noise law", remedy="check the scan")
    if bool((inside == inside[0]).all()):
        raise InputError("the volume is constant: there is no noise to remove", remedy="check the scan")
    noise.law.check(inside)
    low = inside[:: 1 + inside.numel() // 100_000].quantile(0.01)
    filled = torch.where(valid, y, low)
    return noise.law.to_unit(noise.dequantised(filled, generator) if generator else filled).float()


def _flips(dims: int) -> Flips:
    """Every set of axes."""
    return [f for n in range(dims + 1) for f in itertools.combinations(range(dims), n)]
