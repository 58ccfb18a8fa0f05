"""Fixtures of the volumes' tests; real data is found by the environment variable N2S_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from n2s_med.volumes import Provenance


@pytest.fixture
def provenance() -> Provenance:
    return Provenance("toy", "ab12cd", "poisson", {"gain": 0.5, "steps": 3}, "0.1.0")


@pytest.fixture(scope="session")
def data() -> Path:
    root = os.environ.get("N2S_DATA")
    if not root:
        pytest.skip("N2S_DATA names no folder of real scans")
    return Path(root)
