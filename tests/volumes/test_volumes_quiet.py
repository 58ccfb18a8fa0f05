"""Silence of the reading libraries, which several threads share."""

from __future__ import annotations

import contextlib
import logging
import warnings

import pytest

from n2s_med.volumes.quiet import quiet


def warn() -> None:
    warnings.warn_explicit("value of a patient", UserWarning, "file", 1, module="pydicom.valuerep")


def test_silence_lasts_until_the_last_reader_is_done():
    """As two threads would have it: the one that came first goes first."""
    logger, filters = logging.getLogger("pydicom"), list(warnings.filters)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(quiet())
    second.enter_context(quiet())
    first.close()
    warn()
    assert logger.disabled
    second.close()
    assert not logger.disabled
    assert list(warnings.filters) == filters
    with pytest.warns(UserWarning, match="value of a patient"):
        warn()


def test_an_error_inside_ends_the_silence():
    filters = list(warnings.filters)
    with pytest.raises(ValueError, match="in it"), quiet():
        raise ValueError("in it")
    assert list(warnings.filters) == filters
