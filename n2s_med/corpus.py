"""What base weights are trained on: noisy patches of generated volumes and of real scans, in unit noise.

No patch is clean. Generated anatomy is drawn anew all the time and gets noise of variance one, at a contrast and
with a correlation of its own; real scans, noisy already, get it on top, at contrasts where their own noise is
weaker. The network is then perturbed further (:class:`~n2s_med.score.objectives.TotalUnitNoise`) and learns the
score of what it sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from n2s_med.errors import InputError
from n2s_med.noise import Gaussian, Poisson
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import estimate
from n2s_med.noise.scan import ScanNoise
from n2s_med.phantoms import textured_volume
from n2s_med.phantoms.scene import Dice
from n2s_med.score.patches import HeldOut, Patch

EDGE = 96
"""Edge of a generated volume, in voxels."""

POOL = 12
RENEW = {2: 100, 3: 20}
"""Generated volumes at hand, and steps after which the oldest makes room for a new one, by dimension of the patches."""

REAL = 0.3
"""Share of the patches that real scans give, where there are any."""

CONTRAST = (6.0, 250.0)
"""Range of a volume's intensities in standard deviations of its noise; log-uniform between these."""

COUNTS = 0.2
COUNT_CONTRAST = (6.0, 60.0)
"""Share of the patches whose noise is that of counts (Poisson, in the unit-noise domain), and their contrast."""

WHITE = 0.5
"""Share of the other patches whose noise is white."""

OWN_NOISE = 0.5
"""A real scan's own noise, at most, in standard deviations of the noise put on top."""

HELD_OUT_EDGE, HELD_OUT_MARGIN = 40, 8
"""Edge of a held-out block, and its margin that the clean-free figure leaves out."""


@dataclass(frozen=True)
class Signal:
    """A volume to put noise on.

    Attributes
    ----------
    x
        Float32 (X, Y, Z), mostly within [0, 1].
    own_sd
        Standard deviation of the noise that it has already, at its largest, same units.
    """

    x: Tensor
    own_sd: float = 0.0

    @cached_property
    def centre(self) -> float:
        """Its median."""
        return float(self.x.flatten()[:: 1 + self.x.numel() // 100_000].median())

    @classmethod
    def of_scan(cls, y: Tensor, spacing_mm: Sequence[float]) -> Signal:
        """A real scan (X, Y, Z) of any units, mapped to [0, 1] between its outer thousandths.

        Raises
        ------
        InputError
            If its own noise cannot be told.
        """
        few = y.flatten()[:: 1 + y.numel() // 1_000_000]
        low, high = (float(few.quantile(q)) for q in (0.001, 0.999))
        if high <= low:
            raise InputError("the scan is constant", remedy="leave it out")
        x = (y - low) / (high - low)
        law = estimate(x, torch.ones_like(x, dtype=torch.bool), spacing_mm, "gaussian").noise.law
        return cls(x, float(law.variance(torch.zeros(())).sqrt().max()))


class Corpus:
    """A :class:`~n2s_med.score.patches.PatchSource` without end.

    Parameters
    ----------
    scans
        Real noisy scans by name.
    held_out
        Real noisy scans that only the held-out blocks are cut from.
    spatial_dims
        3, or 2 for planes cut along any axis.
    edge
        Edge of a patch, in voxels.
    blocks
        How many held-out blocks.
    seed
        Seed of the generated volumes and the held-out blocks.
    """

    centre = 0.0

    def __init__(
        self,
        scans: Mapping[str, Signal],
        held_out: Mapping[str, Signal],
        *,
        spatial_dims: int = 3,
        edge: int = 32,
        blocks: int = 16,
        seed: int = 0,
    ) -> None:
        self.scans, self.spatial_dims, self.edge, self.seed = dict(scans), spatial_dims, edge, seed
        self.generated: dict[int, Signal] = {}
        self.held_out: Sequence[HeldOut] = [
            self._held_out(index, list(held_out.values())) for index in range(1, 1 + blocks)
        ]

    def begin(self, step: int) -> None:
        """Bring the pool of generated volumes to where it is at this step."""
        first = step // RENEW[self.spatial_dims]
        kept = {number: signal for number, signal in self.generated.items() if first <= number < first + POOL}
        for number in range(first, first + POOL):
            if number not in kept:
                kept[number] = self._generate(number)
        self.generated = kept

    def draw(self, generator: torch.Generator) -> Patch:
        """Draw a noisy patch."""
        dice = Dice(generator)
        real = list(self.scans.values())
        signal = dice.pick(real if real and dice.chance(REAL) else list(self.generated.values()))
        u, noise = self._noisy(self._cut(signal.x, self.edge, dice), signal, dice)
        flips = tuple(axis for axis in range(self.spatial_dims) if dice.chance(0.5))
        return Patch(u, torch.ones_like(u), noise, tuple(range(self.spatial_dims)), flips)

    def fingerprint(self) -> str:
        """SHA-256 over real scans, held-out blocks and the first generated volume, in hexadecimal."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256(f"{self.seed} {self.edge} {self.spatial_dims}".encode())
        generated = self._generate(0).x
        for tensor in (*(s.x for s in self.scans.values()), *(b.u for b in self.held_out), generated):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    # -- signals ---------------------------------------------------------------------------------------

    def _generate(self, number: int) -> Signal:
        """The generated volume of this number; held-out ones have numbers below zero."""
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + number)
        return Signal(textured_volume((EDGE, EDGE, EDGE), generator))

    def _held_out(self, index: int, real: Sequence[Signal]) -> HeldOut:
        """A noisy block of a signal that is never trained on; real and generated ones take turns."""
        dice = Dice(torch.Generator().manual_seed((self.seed + 1) * 1_000_003 - index))
        signal = real[index // 2 % len(real)] if real and index % 2 else self._generate(-index)
        u, noise = self._noisy(self._cut(signal.x, HELD_OUT_EDGE, dice), signal, dice, counts=0.0)
        margins = [min(HELD_OUT_MARGIN, (n - 1) // 4) for n in u.shape[2:]]
        inner = tuple(slice(m, n - m) for m, n in zip(margins, u.shape[2:], strict=True))
        inside = torch.zeros_like(u, dtype=torch.bool)
        inside[0, 0][inner] = True
        return HeldOut(u, inside, noise)

    def _cut(self, x: Tensor, edge: int, dice: Dice) -> Tensor:
        """A random box (1, 1, spatial) of a volume; a plane of it in two dimensions."""
        if self.spatial_dims == 2:
            axis = dice.between(0, 2)
            x = x.select(axis, dice.between(0, x.shape[axis] - 1))
        corner = [dice.between(0, max(0, n - edge)) for n in x.shape]
        return x[tuple(slice(c, c + edge) for c in corner)][None, None]

    # -- noise -----------------------------------------------------------------------------------------

    def _noisy(self, x: Tensor, signal: Signal, dice: Dice, counts: float = COUNTS) -> tuple[Tensor, ScanNoise]:
        """``x`` at a random contrast with noise of variance one, its volume's median at zero."""
        if dice.chance(counts):
            return self._counted(x, signal, dice)
        correlation = Correlation.white(self.spatial_dims)
        if not dice.chance(WHITE):
            correlation = random_correlation(dice, self.spatial_dims)
        contrast = _contrast(CONTRAST, signal, dice)
        u = contrast * (x - signal.centre) + correlation.color(dice.normal(*x.shape))
        return u, ScanNoise(Gaussian(1.0), correlation)

    def _counted(self, x: Tensor, signal: Signal, dice: Dice) -> tuple[Tensor, ScanNoise]:
        """``x`` as counts, spread over their cells, in the unit-noise domain."""
        noise = ScanNoise(Poisson(1.0), Correlation.white(self.spatial_dims), quantum=1.0)
        peak = (_contrast(COUNT_CONTRAST, signal, dice) / 2) ** 2
        u = self._counts(peak * x.clamp_min(0), noise, dice)
        middle = noise.law.to_unit(torch.tensor(peak * max(0.0, signal.centre)))
        return u - middle, ScanNoise(Gaussian(1.0), noise.correlation)

    def _counts(self, expected: Tensor, noise: ScanNoise, dice: Dice) -> Tensor:
        """Counts of these expectations in the unit-noise domain, spread over their cells."""
        y = noise.law.sample(expected, dice.generator)
        return noise.law.to_unit(noise.dequantised(y, dice.generator))


def _contrast(span: tuple[float, float], signal: Signal, dice: Dice) -> float:
    """A contrast from ``span`` at which the signal's own noise stays below the new one."""
    drawn = dice.log_uniform(*span)
    return min(drawn, OWN_NOISE / signal.own_sd) if signal.own_sd else drawn


def random_correlation(dice: Dice, spatial_dims: int) -> Correlation:
    """Noise as smooth as PET's or interpolated MR's, or filtered back projection's (a ramp in the plane)."""
    frequencies = torch.arange(8) / 16
    smooth = dice.log_uniform(0.35, 1.3)
    widths = [smooth * (dice.uniform(0, 1.2) if dice.chance(0.4) else 1.0) for _ in range(spatial_dims)]
    grids = torch.meshgrid(*(frequencies,) * spatial_dims, indexing="ij")
    exponents = torch.stack([(2 * torch.pi * w * f) ** 2 for w, f in zip(widths, grids, strict=True)])
    power = torch.exp(-exponents.sum(0))
    if dice.chance(0.3):
        power = power * (grids[0].square() + grids[1].square() + dice.log_uniform(1e-4, 0.1)).sqrt()
    return Correlation.from_power(power)
