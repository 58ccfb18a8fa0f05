"""Silence of the reading libraries, which several threads share."""

from __future__ import annotations

import contextlib
import logging
import warnings

import pytest

from n2s_med.volumes.quiet import quiet


def warn() -> None:
    warnings.warn_explicit("value of a patient", UserWarning, "file", 1, module="pydicom.valuerep")


def log() -> None:
    logging.getLogger("pydicom").error("value of a patient")
    logging.getLogger("pydicom.pixels.decoders.base").error("value of a patient")


def test_silence_lasts_until_the_last_reader_is_done(caplog):
    """As two threads would have it: the one that came first goes first."""
    filters = list(warnings.filters)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(quiet())
    second.enter_context(quiet())
    first.close()
    warn()
    log()
    assert not caplog.records
    second.close()
    log()
    assert len(caplog.records) == 2
    assert list(warnings.filters) == filters
    with pytest.warns(UserWarning, match="value of a patient"):
        warn()


def test_an_error_inside_ends_the_silence():
    filters = list(warnings.filters)
    with pytest.raises(ValueError, match="in it"), quiet():
        raise ValueError("in it")
    assert list(warnings.filters) == filters
