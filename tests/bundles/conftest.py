"""Fixtures of the bundles' tests: scans of a moment, and bundles whose networks take a moment."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_runs import NAMES, small_bundle, write_scan


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of MONAI, ignite and the exporters are their own business."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def nobody_elses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The developer's tracking server stays out, and a bundle's logging does not outlive its test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Every bundle."""
    return str(request.param)


@pytest.fixture
def bundle(name: str, tmp_path: Path) -> Path:
    """A copy of a bundle with a network of a moment."""
    return small_bundle(name, tmp_path / name)


@pytest.fixture
def scans(name: str, tmp_path: Path) -> Path:
    """A folder with one noisy scan of the bundle's modality."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_scan(name, folder / "scan.nii.gz")
    return folder
