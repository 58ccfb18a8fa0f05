"""From a noisy volume, its noise and a score network to the denoised volume.

    y  →  u = T(y)  →  Σ s(u), a few planes at a time  →  Tweedie's formula  →  x_hat

The volume streams through the network (:mod:`n2s_med.score.stream`): every voxel is computed once, the result does
not depend on the chunks, and what is in memory at once is the input, the output and a few planes of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from n2s_med.compute import Compute
from n2s_med.errors import ConfigurationError
from n2s_med.few_counts import denoised_sums, few, regained
from n2s_med.layout import LINE, in_cache, planes_apart, zeros_apart
from n2s_med.neighbourhood import ENERGY_MARGIN, detail_energy, held
from n2s_med.noise import NoiseModel, Poisson
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.values import all_valid
from n2s_med.regions import Region, grown, slabs, within
from n2s_med.score.model import ScoreModel
from n2s_med.score.network import ScoreUNet
from n2s_med.score.orientations import MOST, orientations
from n2s_med.score.patches import Boxes, noisy_corner
from n2s_med.score.stein import PROBE_STEP, count_parts, count_risk, response
from n2s_med.score.stream import LARGE, StreamedNetwork
from n2s_med.uncertainty import MARGIN, REGION, Curve, Errors, mean_filter, shared_voxels, smoothed_variance
from n2s_med.unit_data import UnitData, admitted

Progress = Callable[[int, int], None]
"""Called with the planes done and the planes in all."""

Tell = Callable[[int], None]
"""Called with the number of planes that one pass has just done."""

SURE_EDGE = 40
SURE_PATCHES = 4
"""Edge and number of the patches on which the step length and SURE are measured."""

QUIET, QUIET_PROBE = 0.35, 63
"""Below this share of its variance noise is added for the network to see; and the number of the probe that is added."""

CALIBRATED_BY = 4
"""Probes by which the variance's calibration is measured."""

FOR_OTHERS, FOR_TRAINED = 2, 4
"""Orientations of weights as they are, and of those trained on the scan."""

STEP_RANGE = (0.0, 1.05)
"""The step from SURE is kept within this range: far below one, the level does not hold, little is
taken away and the figures say so; above one, more than the noise would be."""


@dataclass(frozen=True)
class DenoiseOptions:
    """How to denoise.

    Attributes
    ----------
    orientations
        Passes, each of the volume in another orientation, that are averaged, from 1 to 4; ``None`` takes the default,
        see :meth:`passes`.
    few_counts
        Of whole counts, let sums of neighbours decide where they are few, and keep regional means
        (:mod:`n2s_med.few_counts`); with the formula ``"mean"`` alone.
    chunk_voxels
        Voxels that pass the network at once; bounds the memory.
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

    orientations: int | None = None
    formula: Literal["mean", "published"] = "mean"
    few_counts: bool = True
    chunk_voxels: int = 1_000_000
    step: float | None = None
    sd_probes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.orientations is not None and self.orientations not in range(1, MOST + 1):
            raise ConfigurationError(
                f"{self.orientations} orientations", remedy=f"give a number from 1 to {MOST} for orientations"
            )

    def passes(self, *, trained: bool = False) -> int:
        """How many orientations: by default two for weights as they are, four for those trained on the scan itself.

        These hold noise of their own, which more passes average out (``benchmarks/orientations.py``).
        """
        return self.orientations or (FOR_TRAINED if trained else FOR_OTHERS)


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
        Estimated mean squared error (SURE, PURE) in the same units; the noisy volume has 1. Of whole counts it is
        that of the formula alone, before :mod:`n2s_med.few_counts`.
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
        Standard deviation of each voxel's error, same units, or ``None``; 0 on padding. Of whole counts it is that of
        the formula alone, before :mod:`n2s_med.few_counts`.
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
    spacing_mm
        Voxel spacing along each axis, by which axes may be exchanged; equal if not given.
    """

    def __init__(
        self,
        model: ScoreModel,
        noise: ScanNoise,
        compute: Compute,
        options: DenoiseOptions | None = None,
        *,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        self.noise, self.scale = noise, model.scale
        self.model, self.compute = model, compute
        self.options = options or DenoiseOptions()
        self.passes = self.options.passes()
        self.spatial_dims, self.stride = model.network.spatial_dims, model.network.stride
        spacing_mm = (spacing_mm or (1.0,) * self.spatial_dims)[: self.spatial_dims]
        ways = orientations(self.passes, spacing_mm, noise.correlation)
        self.network = StreamedNetwork(model.network, noise.correlation.traits, compute, ways)

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
            Called with planes done and planes in all.

        Raises
        ------
        InputError
            If nothing of the volume is valid, or all of it is constant.
        """
        shape = y.shape[: self.spatial_dims]
        y_flat = y.reshape(shape)
        inside = torch.ones((), dtype=torch.bool).expand(shape) if valid is None else valid.reshape(shape)
        u = UnitData(y_flat, admitted(y_flat, inside, self.noise), self.noise)
        figures, curve = self._measure(u)
        done, total = 0, y_flat.shape[-1] * (self.passes + 2 * self.options.sd_probes)

        def tell(planes: int) -> None:
            nonlocal done
            done += planes
            if progress:
                progress(done, total)

        x_hat = self._score(u, tell)
        sd = self._variance(u, figures.step, tell) if self.options.sd_probes else None
        for region in in_cache(y_flat):
            law, keep, score = u.noise_at(region).law, u.valid[region], figures.step * x_hat[region]
            noisy = planes_apart(y_flat[region])
            estimate = held(self._estimate(law, noisy, score), y_flat, u.valid, law, region)
            x_hat[region] = estimate if all_valid(keep) else torch.where(keep, estimate, noisy)
            if sd is not None:
                sd[region] = torch.where(keep, (law.variance(estimate) * curve(sd[region])).sqrt(), 0.0)
        if self.noise.quantum and self.options.few_counts and self.options.formula == "mean":
            x_hat = self._regained(x_hat, u)
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

    def _regained(self, x_hat: Tensor, u: UnitData) -> Tensor:
        """Whole counts: regions keep the mean that the data have; where counts are few for the model, sums decide."""

        def counts(values: Tensor) -> Tensor:
            return torch.where(u.valid, values / gain, 0.0)

        law = self.noise.law
        assert isinstance(law, Poisson)
        gain = law.gain
        data, estimate = counts(u.y), counts(x_hat)
        doubtful = not self.model.learned_counts and few(estimate, u.valid)
        sums = denoised_sums(data, u.valid, self._denoised_counts) if doubtful else None
        out = torch.empty_like(x_hat)
        for region, found in regained(estimate, data, u.valid, sums, self._planes(u.shape)):
            out[region] = torch.where(u.valid[region], found * law.at(region).gain, u.y[region])
        return out

    def _denoised_counts(self, counts: Tensor, valid: Tensor) -> Tensor:
        """The mean of whole counts by one pass of the same network."""
        noise = ScanNoise(Poisson(1.0), self.noise.correlation, 1.0)
        centre = float(noise.law.to_unit(counts[valid]).median())
        options = replace(self.options, orientations=1, sd_probes=0)
        denoiser = Denoiser(self.model.centred(centre), noise, self.compute, options)
        score = denoiser._score(UnitData(counts, valid, noise))
        return noise.law.mean_from_unit(counts, score)

    # -- the score field -------------------------------------------------------------------------------

    def _planes(self, shape: Sequence[int]) -> int:
        """How many planes of a volume pass at once."""
        planes = self.options.chunk_voxels // math.prod(shape[:-1])
        return planes // self.stride * self.stride or 2  # a block

    def _read_planes(self, shape: Sequence[int]) -> int:
        """How many planes of a volume are read at once."""
        planes = self._planes(shape)
        return -(-LINE // planes) * planes

    def _passed(
        self, chunks: Iterable[Tensor], shape: Sequence[int], tell: Tell, passes: Sequence[int] = (0,)
    ) -> Iterator[tuple[Region, Tensor]]:
        """What the network says of a volume that comes in chunks, averaged over passes, region by region."""
        done = 0
        for answer in self.network((chunk[None] for chunk in chunks), passes):
            planes = slice(done, done := done + answer.shape[-1])
            yield (*(slice(0, n) for n in shape[:-1]), planes), self.scale * answer[0]
            tell(len(passes) * answer.shape[-1])

    def _score(self, u: Boxes, tell: Tell = lambda _: None) -> Tensor:
        """The network's score of a volume, averaged over its orientations."""
        total, number = zeros_apart(u.shape), self.passes
        together = number if math.prod(u.shape[:-1]) <= LARGE else 1
        for first in range(0, number, together):
            passes = range(first, min(first + together, number))
            for region, answer in self._passed(self._chunks(u, total if first == 0 else None), u.shape, tell, passes):
                total[region] += answer * (len(passes) / number)
        return total

    def _chunks(self, u: Boxes, added: Tensor | None = None) -> Iterator[Tensor]:
        """What the network is to see of a volume, the noise with it that it is shown beside the data.

        That noise is added to ``added`` as well.
        """
        planes = self._planes(u.shape)
        for region in slabs(u.shape, self._read_planes(u.shape)):
            data, noise = self._shown(u, region)
            if noise is not None and added is not None:
                added[region] += noise
            yield from torch.split(data, planes, dim=-1)
            del data, noise  # before the next are made

    def _shown(self, u: Boxes, region: Region) -> tuple[Tensor, Tensor | None]:
        """Data of whole planes, with noise where they hold next to none, as air of few counts does; and that noise.

        The score then takes it away again. The network was never shown less than unit noise, and white noise of a
        third of it makes it say anything. The amount goes by the local variance of the detail; what is added depends
        on the place alone.
        """
        whiteness = ScoreUNet.whiteness(self.noise.correlation.traits[None])
        if not whiteness:
            return planes_apart(u[region]), None
        outer = grown(region, u.shape, (0,) * (len(u.shape) - 1) + (ENERGY_MARGIN,))
        inner = within(region, outer)
        data = planes_apart(u[outer])
        share = detail_energy(data)[inner].div_(ScoreUNet.detail_variance(len(u.shape)))
        if not share.min() < QUIET:
            return data[inner], None
        amount = whiteness * (QUIET - share).clamp_min(0).sqrt()
        noise = amount * self._probe(u.shape, region, QUIET_PROBE)
        return data[inner] + noise, noise

    def _variance(self, u: Boxes, step: float, tell: Tell = lambda _: None) -> Tensor:
        """Variance of ``x_hat`` in units of the noise variance, by probes of the noise, smoothed."""
        (*halves, answered) = (zeros_apart(u.shape) for _ in range(3))
        for index in range(self.options.sd_probes):
            for move in (PROBE_STEP, -PROBE_STEP):
                regions = slabs(u.shape, self._planes(u.shape))
                chunks = (
                    chunk + move * self._probe(u.shape, region, index)
                    for region, chunk in zip(regions, self._chunks(u), strict=True)
                )
                for region, answer in self._passed(chunks, u.shape, tell):
                    if move > 0:
                        answered[region] = answer
                        continue
                    left = self._probe(u.shape, region, index) + step * (answered[region] - answer) / (2 * PROBE_STEP)
                    halves[index % 2][region] += left.square()
        for half in halves:
            half *= 2 / self.options.sd_probes
        variance = answered
        for region in slabs(u.shape, self._planes(u.shape)):
            outer = grown(region, u.shape, (0,) * (len(u.shape) - 1) + (MARGIN,))
            variance[region] = smoothed_variance(*(half[outer] for half in halves))[within(region, outer)]
        return variance

    def _color(self, white: Tensor, outer: Region, core: Region) -> Tensor:
        """``L white`` over ``core`` from ``white`` over ``outer``; beyond the volume, ``white`` is zero."""
        radius = self.noise.correlation.radius
        pad = [reach for r in reversed(radius) for reach in (r, r)]
        colored = self.noise.correlation.color(F.pad(white, pad))
        inside = within(core, outer)
        return colored[tuple(slice(s.start + r, s.stop + r) for s, r in zip(inside, radius, strict=True))]

    # -- what Stein's identities tell ------------------------------------------------------------------

    def _measure(self, u: UnitData) -> tuple[Figures, Curve]:
        """Step and risk, by one probe on a few patches that hold noise; and how the variance is calibrated."""
        generator = torch.Generator().manual_seed(self.options.seed)
        edges = [min(SURE_EDGE, n) for n in u.shape]
        corners = [noisy_corner(u, u.valid, edges, generator) for _ in range(SURE_PATCHES)]
        boxes = [tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True)) for corner in corners]
        patches = [u[box][None, None] for box in boxes]
        probes = [torch.randn(patch.shape, generator=generator) for patch in patches]
        valid = [u.valid[box] for box in boxes]
        inside = torch.cat([part.flatten() for part in valid])

        def joined(maps: Sequence[Tensor]) -> Tensor:
            return torch.cat([part.flatten() for part in maps])[inside].double()

        def g(v: Tensor) -> Tensor:
            return self._score(v[0, 0])[None, None]

        colored = [self.noise.correlation.color(probe) for probe in probes]
        scores = [g(patch) for patch in patches]
        slopes = [response(g, patch, b) for patch, b in zip(patches, colored, strict=True)]
        square = joined([score.square() for score in scores])
        trace = joined([b * slope for b, slope in zip(colored, slopes, strict=True)])
        best = float(-trace.mean() / square.mean()) if square.any() else 1.0
        step = self._step(best)
        if self.noise.quantum:
            noises = [replace(u.noise_at(box), quantum=0.0) for box in boxes]  # not spread, as for training
            parts = [count_parts(lambda v: step * g(v), *each) for each in zip(patches, noises, probes, strict=True)]
            risks = [count_risk(*each) for each in parts]
        else:
            parts = [
                (step * score, b, b + step * slope, torch.ones_like(b))
                for score, b, slope in zip(scores, colored, slopes, strict=True)
            ]
            risks = [change.square() + 2 * b * (left - b) + 1 for change, b, left, _ in parts]
        risk = joined(risks).mean() / joined([part[-1] for part in parts]).mean()
        figures = Figures(step, best, float(risk))
        if not self.options.sd_probes:
            return figures, Curve()
        told = [self._variance(patch[0, 0], step) for patch in patches]
        said, near = (
            torch.cat([values[keep] for values, keep in zip(maps, valid, strict=True)])
            for maps in (told, [mean_filter(values, REGION) for values in told])
        )
        errors = [
            self._errors(patch, keep, u.noise_at(box), step, generator)
            for patch, keep, box in zip(patches, valid, boxes, strict=True)
        ]
        shared = shared_voxels(self.noise.correlation.kernel)
        return figures, Curve.fitted(said, near, Errors.joined(errors, valid), shared)

    def _errors(self, patch: Tensor, keep: Tensor, noise: ScanNoise, step: float, generator: torch.Generator) -> Errors:
        """What probes of ±1, whose squares do not scatter, and Stein's identities tell of the error in a patch.

        Of whole counts in the scan's own units, and without the spread of training: here they are what they are.
        """

        def h(v: Tensor) -> Tensor:
            return step * self._score(v[0, 0])[None, None]

        alone, found = replace(noise, quantum=0.0), []
        change = h(patch)
        for _ in range(CALIBRATED_BY):
            white = torch.randint(0, 2, patch.shape, generator=generator).float() * 2 - 1
            if noise.quantum:
                parts = count_parts(h, patch, alone, white)
                risk = count_risk(*parts)
            else:
                probe = noise.correlation.color(white)
                answer = probe + response(h, patch, probe)
                parts = change, probe, answer, torch.ones_like(probe)
                risk = change.square() + 2 * probe * (answer - probe) + 1
            found.append(Errors.of(*(torch.where(keep, part[0, 0], 0.0) for part in (risk, *parts))))
        return Errors.mean(found)

    def _step(self, alpha: float) -> float:
        """The step to take: the one given, SURE's within its range, or 1 on a count lattice."""
        if self.options.step is not None:
            return self.options.step
        if self.noise.quantum:
            return 1.0
        return min(max(alpha, STEP_RANGE[0]), STEP_RANGE[1])

    def _probe(self, shape: Sequence[int], core: Region, index: int) -> Tensor:
        """``L w`` over ``core``; ``w`` is ±1 and depends on the place in the volume alone."""
        outer = grown(core, shape, self.noise.correlation.radius)
        planes = []
        for plane in range(outer[-1].start, outer[-1].stop):
            generator = torch.Generator().manual_seed((self.options.seed * 64 + index) * 1_000_003 + plane)
            signs = torch.randint(0, 2, tuple(shape[:-1]), generator=generator, dtype=torch.float32)
            planes.append(signs[outer[:-1]] * 2 - 1)
        return self._color(torch.stack(planes).movedim(0, -1), outer, core)
