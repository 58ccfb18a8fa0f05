"""Measure the noise of what a path holds, and denoise nothing: the job of ``n2s-med noise``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from n2s_med.errors import InputError, N2SError, NoiseLawError, PartialError
from n2s_med.jobs.noise import NoiseChoice, NoiseRequest
from n2s_med.jobs.scans import Say, place_of, scans_of
from n2s_med.modalities import modality_named
from n2s_med.volumes import Volume, nothing_usable, survey


@dataclass(frozen=True)
class MeasureJob:
    """Measure the noise of every scan at a path.

    Attributes
    ----------
    source
        A NIfTI file, a DICOM file, or a folder of either.
    modality
        Modality of the scans where their files do not say.
    noise
        What is said of the noise, and how it is found.
    """

    source: Path
    modality: str | None = None
    noise: NoiseRequest = field(default_factory=NoiseRequest)

    def run(self, say: Say) -> Iterator[tuple[str, NoiseChoice]]:
        """Label and noise of one scan after the other.

        Raises
        ------
        N2SError
            If nothing at the path can be read, or the only scan does not show its noise.
        PartialError
            At the end, if some of several scans did not; why was said for each.
        """
        found = survey(self.source)
        for refusal in found.refusals:
            say(f"left out: {refusal}")
        if not found.sources:
            raise nothing_usable(self.source, found.refusals)
        failed = 0
        for source in found.sources:
            try:
                volume = source.arrays()
                choice = self._one(volume)
            except N2SError as error:
                if len(found.sources) == 1:
                    raise
                say(f"error: {error}")
                failed += 1
            else:
                yield volume.meta["label"], choice
        if failed:
            kind = PartialError if failed < len(found.sources) else N2SError
            raise kind(f"{failed} of {len(found.sources)} scans failed", path=self.source)

    def _one(self, volume: Volume) -> NoiseChoice:
        name = self.modality or volume.meta["modality"]
        try:
            return scans_of(volume, modality_named(name) if name else None, self.noise)[0].choice
        except (InputError, NoiseLawError) as error:
            raise error.at(place_of(volume)) from error.__cause__
