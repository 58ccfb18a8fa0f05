"""What can go wrong, in one tree.

::

    N2SError                    anything this package refuses to do; exit code 1
    ├── ConfigurationError      an option, key or value that does not exist; exit code 2
    ├── InputError              a file that is missing, damaged, empty or no image
    │   └── UnsupportedError    a sound image that this package does not handle, and why
    ├── NoiseLawError           data outside the noise law's domain, or a law's parameter out of range
    ├── ModelError              weights that are damaged or made for another modality or dimension
    ├── PartialError            some of several scans failed and the rest are done; exit code 3
    └── OutputError             a result that cannot be written: it exists, no space, no permission

Every message is one line: what, where, and the remedy. None carries patient data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self


class N2SError(Exception):
    """Base of every refusal.

    Parameters
    ----------
    cause
        What is wrong, without patient data.
    remedy
        What the user can do about it, as an imperative sentence without full stop.
    path
        The file or folder at fault, if there is one.
    """

    exit_code = 1

    def __init__(self, cause: str, *, remedy: str = "", path: str | Path | None = None) -> None:
        self.cause, self.remedy, self.path = cause, remedy, path
        where = f"{path}: " if path is not None else ""
        stop = "" if remedy.endswith("?") else "."
        what_next = f". {remedy[0].upper()}{remedy[1:]}{stop}" if remedy else ""
        super().__init__(" ".join(f"{where}{cause}{what_next}".split()))

    def at(self, path: str | Path) -> Self:
        """Return this error, told of ``path`` if it has no path of its own."""
        return self if self.path is not None else type(self)(self.cause, remedy=self.remedy, path=path)


class ConfigurationError(N2SError):
    """An option, configuration key or value that does not exist."""

    exit_code = 2


class InputError(N2SError):
    """A file that is missing, damaged, empty or no image."""


class UnsupportedError(InputError):
    """A sound image that this package does not handle; the cause says why."""


class NoiseLawError(N2SError):
    """Data outside the noise law's domain, or a law's parameter out of range."""


class ModelError(N2SError):
    """Weights that are damaged, or made for another modality, law or dimension."""


class OutputError(N2SError):
    """A result that cannot be written: it exists already, no space, no permission."""


class PartialError(N2SError):
    """Some of several scans failed; each was reported, and the rest are done."""

    exit_code = 3
