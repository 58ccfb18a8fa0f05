"""Silence for the libraries that read files: real scanners break the standards, and warnings quote values."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

_LOGGERS = ("pydicom", "nibabel.global", "highdicom", "pylibjpeg", "openjpeg")
"""Those below them inherit their level."""
_NOTHING = logging.CRITICAL + 1
_PACKAGES = r"pydicom|nibabel|highdicom"


class _Silence:
    """Python's filters and loggers are the whole process's: the first to come sets them, the last to go resets them."""

    def __init__(self) -> None:
        self._lock, self._inside, self._undo = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._begin()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._undo.close()

    def _begin(self) -> None:
        self._undo.enter_context(warnings.catch_warnings())
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module=_PACKAGES)
        for logger in map(logging.getLogger, _LOGGERS):
            self._undo.callback(logger.setLevel, logger.level)
            logger.setLevel(_NOTHING)


_SILENCE = _Silence()


def quiet() -> contextlib.AbstractContextManager[None]:
    """Keep pydicom, nibabel and highdicom from warning and logging what may be patient data, in any thread."""
    return _SILENCE()
