"""Which noise a scan is taken to have: what the user says, else the modality, else what the scan shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from n2s_med.errors import ConfigurationError, InputError
from n2s_med.modalities import Modality
from n2s_med.noise import LAWS, law_named
from n2s_med.noise.correlation import Correlation
from n2s_med.noise.estimate import Estimate, estimate, quantum_of
from n2s_med.noise.scan import ScanNoise
from n2s_med.report import JSONValue

AUTO = "auto"

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
    """

    law: str = AUTO
    parameters: Mapping[str, float] = field(default_factory=dict)
    correlation: Literal["auto", "white"] = "auto"

    def __post_init__(self) -> None:
        if self.law == AUTO and self.parameters:
            given = ", ".join(f"--{p}" for p in self.parameters)
            raise ConfigurationError(f"{given} was given without its law", remedy="name it with --noise")
        if self.parameters or self.law not in (AUTO, *LAWS):
            law_named(self.law, **self.parameters)  # unknown laws and parameters fail before anything is read


@dataclass(frozen=True)
class NoiseChoice:
    """The noise that was chosen, what was measured, and what must be said about it."""

    noise: ScanNoise
    measured: Estimate | None
    sentence: str
    warnings: tuple[str, ...] = ()

    def figures(self) -> dict[str, JSONValue]:
        """For the report."""
        out: dict[str, JSONValue] = {"law": self.noise.law.name, **self.noise.law.parameters}
        out["correlated"] = not self.noise.correlation.is_white
        out["whole_counts"] = self.noise.quantum > 0
        if math.isfinite(self.noise.floor):
            out["left_as_it_is_below_units"] = self.noise.floor
        if self.measured is not None:
            found = self.measured
            out["level_interval_95"] = list(found.level_interval)
            out["measured_power"] = found.power
            out["measured_power_interval_95"] = list(found.power_interval)
            out["neighbour_correlation"] = list(found.neighbour_correlation)
            out["misfit_by_law"] = dict(found.misfit)
            out["flat_blocks"] = found.blocks
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
        return _given(y, valid, spacing_mm, request)
    signed = bool((y[valid] < 0).any())
    default = modality.law if modality else None
    if request.law != AUTO:
        wanted: str | None = request.law
    else:
        wanted = "gaussian" if signed else default
    found = _estimate(y, valid, spacing_mm, wanted, modality)
    warnings = []
    if request.law == AUTO and signed and default not in (None, "gaussian"):
        warnings.append(
            f"The {default} law that is usual for this modality admits no negative values, and the scan has"
            " some: the gaussian law was taken."
        )
    if not found.fits and found.better_law:
        told = _poor_fit(found, found.better_law)
        if request.law == AUTO:
            found = _estimate(y, valid, spacing_mm, found.better_law, modality)
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
    noise = found.noise
    if request.correlation == "white":
        noise = replace(noise, correlation=Correlation.white(noise.correlation.kernel.ndim))
    warnings += _rician(y, valid, noise, modality)
    return NoiseChoice(noise, found, _sentence(found, noise), tuple(warnings))


def _estimate(
    y: Tensor, valid: Tensor, spacing_mm: Sequence[float], law: str | None, modality: Modality | None
) -> Estimate:
    magnitude = modality is not None and modality.magnitude
    found = estimate(_image(y), _image(valid), spacing_mm[: _image(y).ndim], law, magnitude=magnitude)
    found.noise.law.check(y[valid])
    return found


def _image(volume: Tensor) -> Tensor:
    """A volume of one slice as the two-dimensional image it is."""
    return volume[..., 0] if volume.shape[-1] == 1 else volume


def _given(y: Tensor, valid: Tensor, spacing_mm: Sequence[float], request: NoiseRequest) -> NoiseChoice:
    """The law and level that the user gives; only the correlation is estimated."""
    law = law_named(request.law, **request.parameters)
    law.check(y[valid])
    found, correlation, warnings = None, Correlation.white(_image(y).ndim), []
    if request.correlation == AUTO:
        try:
            found = _estimate(y, valid, spacing_mm, request.law, None)
            correlation = found.noise.correlation
        except InputError:
            warnings.append("The scan shows too little noise to measure its correlation: taken as white.")
    quantum = quantum_of(y[valid], law)
    floor = -math.inf if quantum or found is None else found.noise.floor
    noise = ScanNoise(law, correlation, quantum, floor)
    return NoiseChoice(noise, found, f"{law}, as given; {_correlation(noise)}", tuple(warnings))


def _sentence(found: Estimate, noise: ScanNoise) -> str:
    low, high = found.level_interval
    level = "whole counts" if noise.quantum else f"level within {low:.3g} to {high:.3g} of it (95 %)"
    fit = f"fit to {found.misfit[noise.law.name]:.0%}"
    power = f", variance follows intensity to the power {found.power:.2f}" if found.power == found.power else ""
    return f"{noise.law}, estimated, {level}; {fit}{power}; {_correlation(noise)}"


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


def _rician(y: Tensor, valid: Tensor, noise: ScanNoise, modality: Modality | None) -> list[str]:
    """Say so where MR magnitude is biased and the Gaussian law does not know it."""
    if modality is None or not modality.magnitude or noise.law.variance_power:
        return []
    sd = noise.law.variance(torch.zeros(())).sqrt()
    share = float((y[valid] < RICIAN_BELOW * sd).double().mean())
    if share < RICIAN_SHARE:
        return []
    return [
        f"{share:.0%} of the voxels lie below {RICIAN_BELOW:g} noise SDs, where MR magnitude is Rician and"
        " reads too high: that bias was not corrected."
    ]
