"""What the package knows of each modality: units, default noise law, display window.

A new modality is one more row of :data:`MODALITIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from n2s_med.errors import ConfigurationError


@dataclass(frozen=True)
class Modality:
    """One imaging modality.

    Attributes
    ----------
    name
        The name on the command line.
    dicom
        Value of DICOM's Modality (0008,0060).
    law
        Default noise law, a key of :data:`n2s_med.noise.LAWS`.
    units
        Physical unit where the file does not state one.
    window
        Display window (low, high) in ``units``; ``None`` takes percentiles of the volume.
    magnitude
        Whether the intensities are magnitudes of complex signal, Rician at low signal.
    """

    name: str
    dicom: str
    law: str
    units: str
    window: tuple[float, float] | None = None
    magnitude: bool = False


MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        row.name: row
        for row in (
            Modality("pet", "PT", "poisson", "BQML"),
            Modality("nm", "NM", "poisson", "CNTS"),
            Modality("ct", "CT", "gaussian", "HU", window=(-160.0, 240.0)),
            Modality("mr", "MR", "gaussian", "arbitrary", magnitude=True),
            Modality("us", "US", "gamma", "arbitrary"),
        )
    }
)


def modality_named(name: str) -> Modality:
    """Return the modality with this command-line name or DICOM code, in any case."""
    for row in MODALITIES.values():
        if name.lower() == row.name or name.upper() == row.dicom:
            return row
    raise ConfigurationError(f"unknown modality {name!r}", remedy=f"choose one of {', '.join(MODALITIES)}")
