"""Assertions of the inherited suite explain themselves; real data is found by the variable N2S_DATA."""

import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("laws")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans."""
    root = os.environ.get("N2S_DATA")
    if not root:
        pytest.skip("N2S_DATA names no folder of real scans")
    return Path(root)
