"""Fixtures of the jobs' tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from job_scans import Run, call, nifti, pet_series

from n2s_med.tracking import open_tracker


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own tracking server stays out of the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process."""
    return partial(call, capsys)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small noisy NIfTI image."""
    return nifti(tmp_path / "scan.nii.gz")


@pytest.fixture(scope="session")
def pet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small noisy PET series."""
    return pet_series(tmp_path_factory.mktemp("phantom") / "pet")


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with open_tracker(True, experiment="none", run_name="none", directory=folder):
            pass
    return folder / "mlflow.db"
