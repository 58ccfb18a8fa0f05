"""Which noise a scan is taken to have: what the user says, else the modality, else what the scan shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.jobs.level_free import LevelByScore
from n2s_med.modalities import Modality
from n2s_med.noise import LAWS, law_named
from n2s_med.noise.base import require_nonnegative
from n2s_med.noise.by_score import SOLUTIONS, published
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import Estimate, estimate
from n2s_med.noise.lattice import LOOKED_AT, quantum_of
from n2s_med.noise.points import STEEPEST
from n2s_med.noise.rician import rician_amplitude
from n2s_med.noise.scan import ScanNoise
from n2s_med.noise.values import data, has_negative, some_places
from n2s_med.report import JSONValue

AUTO = "auto"

CHOOSING_LEVEL = 0.75
"""Share of the level found that it may be at least, and over which at most, for weights to be adapted. Stein's estimate
compares two by what they take off and by what they keep, the latter weighted by the noise: at a level further off it
prefers weights that keep noise as structure, or take structure for noise, by more than adapting gains."""

RICIAN_BELOW = 3.0
"""MR magnitude below this many noise SDs is biased upwards by its Rician law."""

RICIAN_SHARE = 0.01
"""Share of such voxels from which it is said."""


@dataclass(frozen=True)
class NoiseRequest:
    """What the user says of the noise.

    Attributes
    ----------
    law
        A law's name, or ``"auto"``.
    parameters
        The law's parameters; empty to have them estimated.
    correlation
        ``"auto"`` estimates it, ``"white"`` takes none.
    rician
        ``"auto"`` corrects MR magnitude for its Rician bias where it is low enough to have one, ``"off"`` never.
    by_score
        The published method that finds the level; ``None`` finds it on flat blocks.
    """

    law: str = AUTO
    parameters: Mapping[str, float] = field(default_factory=dict)
    correlation: Literal["auto", "white"] = "auto"
    rician: Literal["auto", "off"] = "auto"
    by_score: LevelByScore | None = None

    def __post_init__(self) -> None:
        if self.law == AUTO and self.parameters:
            given = ", ".join(f"--{p}" for p in self.parameters)
            raise ConfigurationError(f"{given} was given without its law", remedy="name it with --noise")
        if self.parameters or self.law not in (AUTO, *LAWS):
            law_named(self.law, **self.parameters)  # unknown laws and parameters fail before anything is read
        if self.by_score and self.parameters:
            raise ConfigurationError(
                "the level was given, and an estimator of the level too", remedy="leave out one of them"
            )
        if self.by_score and self.law != AUTO:
            published(self.law, SOLUTIONS)


@dataclass(frozen=True)
class NoiseChoice:
    """The noise that was chosen, what was measured, and what must be said about it.

    Attributes
    ----------
    noise
        Law, level and correlation.
    measured
        What the scan says of them, where it was asked.
    sentence, warnings
        For the log and the report.
    rician
        Whether the scan is MR magnitude so low that the denoised one is to be corrected for its Rician bias.
    level_interval
        95 % interval of the level over it, where the level is estimated on flat blocks.
    """

    noise: ScanNoise
    measured: Estimate | None
    sentence: str
    warnings: tuple[str, ...] = ()
    rician: bool = False
    level_interval: tuple[float, float] | None = None

    @property
    def level_told(self) -> bool:
        """Whether the level is told closely enough to choose weights by."""
        low, high = self.level_interval or (1.0, 1.0)
        return low >= CHOOSING_LEVEL and high <= 1 / CHOOSING_LEVEL

    def corrected(self, x_hat: Tensor, valid: Tensor) -> Tensor:
        """The denoised volume, its Rician bias taken off where it has one (X, Y, Z), units of the scan."""
        if not self.rician:
            return x_hat
        law = self.noise.law.at(tuple(slice(None) for _ in x_hat.shape))
        return torch.where(valid, rician_amplitude(x_hat, law.variance(x_hat).sqrt()), x_hat)

    def figures(self) -> dict[str, JSONValue]:
        """For the report."""
        out: dict[str, JSONValue] = {"law": self.noise.law.name, **self.noise.law.parameters}
        out["correlated"] = not self.noise.correlation.is_white
        out["whole_counts"] = self.noise.quantum > 0
        out["rician_bias_corrected"] = self.rician
        if math.isfinite(self.noise.floor):
            out["left_as_it_is_below_units"] = self.noise.floor
        if self.measured is not None:
            found = self.measured
            out["level_interval_95"] = list(found.level_interval)
            out["measured_power"] = found.power
            out["measured_power_interval_95"] = list(found.power_interval)
            out["power_told"] = found.power_told
            out["neighbour_correlation"] = list(found.neighbour_correlation)
            out["misfit_by_law"] = dict(found.misfit)
            out["flat_blocks"] = found.blocks
            if found.variation:
                out["noise_sd_over_the_volume_percentiles_5_95_relative"] = list(found.variation)
        return out


def choose_noise(
    y: Tensor, valid: Tensor, spacing_mm: Sequence[float], modality: Modality | None, request: NoiseRequest
) -> NoiseChoice:
    """Choose the noise of a volume (X, Y, Z).

    Raises
    ------
    ConfigurationError
        If the law is unknown or the parameters are not its own.
    InputError
        If the level must be estimated and the volume does not show enough noise.
    NoiseLawError
        If the volume lies outside the domain of a law that was asked for by name.
    """
    if request.law != AUTO and request.parameters:
        choice = _given(y, valid, spacing_mm, request, "as given")
        rician, told_so = _rician(y, valid, choice.noise, modality, request)
        return replace(choice, warnings=(*choice.warnings, *told_so), rician=rician)
    values = data(y, valid)
    signed = has_negative(values)
    if signed and request.law != AUTO and LAWS[request.law].fixed_power != 0:
        require_nonnegative(request.law, values)
    default = modality.law if modality else None
    if request.law != AUTO:
        wanted: str | None = request.law
    else:
        wanted = "gaussian" if signed else default
    if request.by_score:
        return _by_score(y, valid, spacing_mm, modality, replace(request, law=wanted or "gaussian"))
    found = _estimate(y, valid, values, spacing_mm, wanted, modality)
    warnings = []
    if request.law == AUTO and signed and default not in (None, "gaussian"):
        warnings.append(
            f"The {default} law that is usual for this modality admits no negative values, and the scan has"
            " some: the gaussian law was taken."
        )
    magnitude = modality is not None and modality.magnitude and found.noise.law.variance_power == 0
    if magnitude and found.better_law:
        found, most = found.of_texture(), found
        warnings.append(_texture(found, most))
    elif found.better_law:
        told = _poor_fit(found, found.better_law)
        if request.law == AUTO:
            found = _estimate(y, valid, values, spacing_mm, found.better_law, modality)
            told += f" The {found.noise.law.name} law was taken."
        else:
            told += f" Use --noise {found.better_law}, or --noise auto."
        warnings.append(told)
    elif not found.fits:
        warnings.append(
            f"The variance differs by about {found.misfit[found.noise.law.name]:.0%} from the"
            f" {found.noise.law.name} law over the intensities of the scan, and no other law fits better:"
            " the noise varies in space, or structure hides it."
        )
    if found.rough:
        warnings.append(
            "No part of the scan is flat: the level found is an upper bound, as structure is in it, and the law is not"
            " told. Give the level if you know it."
        )
    noise = found.noise
    if request.correlation == "white":
        noise = replace(noise, correlation=Correlation.white(noise.correlation.kernel.ndim))
    rician, told_so = _rician(y, valid, noise, modality, request)
    return NoiseChoice(noise, found, _sentence(found, noise), (*warnings, *told_so), rician, found.level_interval)


def _estimate(
    y: Tensor, valid: Tensor, values: Tensor, spacing_mm: Sequence[float], law: str | None, modality: Modality | None
) -> Estimate:
    """The estimate of a law's noise; the valid values are checked against the law."""
    magnitude = modality is not None and modality.magnitude
    found = estimate(_image(y), _image(valid), spacing_mm[: _image(y).ndim], law, magnitude=magnitude)
    found.noise.law.check(values)
    return found


def _image(volume: Tensor) -> Tensor:
    """A volume of one slice as the two-dimensional image it is."""
    return volume[..., 0] if volume.shape[-1] == 1 else volume


def _by_score(
    y: Tensor, valid: Tensor, spacing_mm: Sequence[float], modality: Modality | None, request: NoiseRequest
) -> NoiseChoice:
    """The level by a published method; the correlation, of which they know nothing, as ever."""
    assert request.by_score is not None
    image, method = _image(y), request.by_score.method
    found = request.by_score(image, _image(valid), spacing_mm[: image.ndim], request.law)
    power = f"; the power by two perturbations is {found.power:.2f}" if found.power == found.power else ""
    told = f"by {method}, which gives no interval{power}"
    choice = _given(y, valid, spacing_mm, replace(request, parameters=found.law.parameters, by_score=None), told)
    cost = (
        f"A score was learned in {found.steps} steps for the level alone. {method} takes posterior variance for noise:"
        " its level is too high where little of the scan is flat."
    )
    rician, told_so = _rician(y, valid, choice.noise, modality, request)
    return replace(choice, warnings=(*choice.warnings, cost, *told_so), rician=rician)


def _given(y: Tensor, valid: Tensor, spacing_mm: Sequence[float], request: NoiseRequest, whence: str) -> NoiseChoice:
    """The law and level of the request; only the correlation is estimated."""
    law = law_named(request.law, **request.parameters)
    values = data(y, valid)
    law.check(values)
    found, correlation, warnings = None, Correlation.white(_image(y).ndim), []
    if request.correlation == AUTO:
        try:
            found = _estimate(y, valid, values, spacing_mm, request.law, None)
            correlation = found.noise.correlation
        except InputError:
            warnings.append("The scan shows too little noise to measure its correlation: taken as white.")
    quantum = quantum_of(y[some_places(valid, LOOKED_AT)], law)
    floor = -math.inf if quantum or found is None else found.noise.floor
    noise = ScanNoise(law, correlation, quantum, floor)
    return NoiseChoice(noise, found, f"{law}, {whence}; {_correlation(noise)}", tuple(warnings))


def _sentence(found: Estimate, noise: ScanNoise) -> str:
    low, high = found.level_interval
    level = "whole counts" if noise.quantum else f"level within {low:.3g} to {high:.3g} of it (95 %)"
    fit = f"fit to {found.misfit[noise.law.name]:.0%}"
    power = "" if math.isnan(found.power) else f", {_power(found)}"
    space = ""
    if found.variation:
        least, most = found.variation
        space = f"; its SD varies over the volume, {least:.2f} to {most:.2f} of the middle one"
    return f"{noise.law}, estimated, {level}; {fit}{power}{space}; {_correlation(noise)}"


def _power(found: Estimate) -> str:
    if found.power_told:
        return f"variance follows intensity to the power {found.power:.2f}"
    low, high = (min(max(end, 0.0), STEEPEST) for end in found.power_interval)
    taken = f", taken as {found.power:.2f}" if found.noise.law.fixed_power is None else ""
    return f"the power of the intensity that variance follows is not told ({low:.2g} to {high:.2g}{taken})"


def _correlation(noise: ScanNoise) -> str:
    if noise.correlation.is_white:
        return "white"
    return "correlated (neighbours " + ", ".join(f"{lag:.2f}" for lag in noise.correlation.neighbours) + ")"


def _poor_fit(found: Estimate, better: str) -> str:
    law = found.noise.law.name
    return (
        f"The noise does not follow the {law} law (off by about {found.misfit[law]:.0%}): its variance goes"
        f" with the intensity to the power {found.power:.2f}. The {better} law fits better"
        f" (to about {found.misfit[better]:.0%})."
    )


def _texture(found: Estimate, most: Estimate) -> str:
    return (
        f"Where this scan looks flat its variance goes with the intensity to the power {found.power:.2f}, and noise of"
        f" MR does not: that is texture, and the level is not told. It is at most that of the texture,"
        f" {most.noise.law}; taken is what is white beneath, {found.noise.law}. Give --sigma if you know it."
    )


def _rician(
    y: Tensor, valid: Tensor, noise: ScanNoise, modality: Modality | None, request: NoiseRequest
) -> tuple[bool, list[str]]:
    """Whether the denoised scan is to be corrected for its Rician bias, and what is to be said of it."""
    dark = _rician_share(y, valid, noise, modality)
    if dark < RICIAN_SHARE:
        return False, []
    corrected = request.rician == "auto"
    return corrected, [_rician_told(dark, corrected)]


def _rician_share(y: Tensor, valid: Tensor, noise: ScanNoise, modality: Modality | None) -> float:
    """Share of MR magnitude that is biased and of which the Gaussian law does not know it."""
    if modality is None or not modality.magnitude or noise.law.variance_power:
        return 0.0
    seen = _image(y)
    low = seen < RICIAN_BELOW * noise.law.variance(torch.zeros_like(seen)).sqrt()
    return float(low[_image(valid)].double().mean())


def _rician_told(share: float, corrected: bool) -> str:
    done = "the denoised scan is corrected for that bias" if corrected else "that bias stays"
    return (
        f"{share:.0%} of the voxels lie below {RICIAN_BELOW:g} noise SDs, where MR magnitude is Rician and"
        f" reads too high: {done}."
    )
