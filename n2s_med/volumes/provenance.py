"""What was done to a volume, as it is told in the files written."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from n2s_med.errors import ConfigurationError

if TYPE_CHECKING:
    from n2s_med.volumes.deidentify import Deidentifier

DESCRIPTION_LENGTH = 1024
"""Characters that DICOM's Derivation Description (VR ST) can hold."""


@dataclass(frozen=True)
class Provenance:
    """Which model, noise law and parameters made a volume.

    Attributes
    ----------
    model
        Name of the model, or how it was trained.
    model_hash
        Hash of its weights, in hexadecimal digits.
    law
        Noise law, a key of ``n2s_med.noise.LAWS``.
    parameters
        Parameters of the law and of the denoising, by name.
    version
        Version of this package.
    deidentifier
        What takes the patient's identity out of the files; ``None`` leaves it, as the result belongs to the study.
    """

    model: str
    model_hash: str
    law: str
    parameters: Mapping[str, str | float | int]
    version: str
    deidentifier: Deidentifier | None = None

    def description(self) -> str:
        """Return one sentence of printable ASCII, at most 1024 characters, always the same."""
        settings = ", ".join(f"{name}={_plain(value)}" for name, value in sorted(self.parameters.items()))
        noise = f"{self.law} noise ({settings})" if settings else f"{self.law} noise"
        sentence = one_line(
            f"Denoised by n2s-med {self.version} (Noise2Score) with model {self.model} "
            f"(hash {self.model_hash}) for {noise}."
        )
        if len(sentence) <= DESCRIPTION_LENGTH:
            return sentence
        return f"{sentence[: DESCRIPTION_LENGTH - 4]} ..."

    def uid(self, *source: str) -> str:
        """Return the UID of what this provenance makes of ``source``: same inputs, same UID.

        It is a UUID-derived UID (DICOM PS3.5 B.2) of the SHA-256 of the source and of every field of this
        provenance except the model's name.
        """
        settings = [f"{name}={_exact(value)}" for name, value in sorted(self.parameters.items())]
        secret = [self.deidentifier.fingerprint] if self.deidentifier else []
        text = "\0".join([*source, self.model_hash, self.law, self.version, *settings, *secret])
        digest = hashlib.sha256(text.encode()).digest()
        return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def moment_of_creation() -> datetime:
    """Return now, or what ``SOURCE_DATE_EPOCH`` says (seconds since 1970): with it, the same run writes the same bytes.

    Raises
    ------
    ConfigurationError
        The variable is no number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now().astimezone()
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigurationError(
            f"SOURCE_DATE_EPOCH is {epoch!r}", remedy="set it to whole seconds since 1970, or unset it"
        ) from error


def _plain(value: str | float | int) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def _exact(value: str | float | int) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)


def one_line(text: str) -> str:
    """Return ``text`` on one line of printable ASCII, which every character set of DICOM contains."""
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in " ".join(text.split()))
