"""Silence for the libraries that read files: real scanners break the standards, and warnings quote values."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("pydicom", "nibabel.global")
_PACKAGES = r"pydicom|nibabel|highdicom"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom, nibabel and highdicom from warning and logging what may be patient data."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=_PACKAGES)
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
