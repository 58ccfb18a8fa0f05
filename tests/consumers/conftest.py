"""What runs the bundles from outside: slow, and mostly in environments of their own, so only by ``make consumers``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SLOW = "N2S_SLOW"
"""Environment variable that asks for these tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests out where they are not asked for; warnings of the consumers are their own business."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not os.environ.get(SLOW):
                item.add_marker(pytest.mark.skip(reason=f"slow: make consumers, or set {SLOW}=1"))
