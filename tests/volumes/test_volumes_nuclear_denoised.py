"""Nuclear medicine through the command: raw counts are Poisson with a gain of exactly 1, and results are valid."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from job_scans import Run, call, report_of
from made_nuclear import KINDS, make_nuclear
from numpy.typing import NDArray

from n2s_med.volumes import read

EDGE = 32


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process."""
    return partial(call, capsys)


def organ() -> NDArray[np.float64]:
    """The counts to expect of a warm disk with a hot spot."""
    y, x = np.indices((EDGE, EDGE)) - EDGE / 2
    mean: NDArray[np.float64] = 4.0 + 30.0 * (np.hypot(x, y) < 12) + 40.0 * (np.hypot(x - 4, y) < 4)
    return mean


def counted(kind: str) -> NDArray[np.uint16]:
    """Its counts, in every frame of an object of ``kind``."""
    frames = int(np.prod(list(KINDS[kind].values())))
    return np.random.default_rng(7).poisson(organ(), size=(frames, EDGE, EDGE)).astype(np.uint16)


def rms(error: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(error**2)))


def errors(path: Path) -> set[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_file_to_file(run: Run, tmp_path: Path, kind: str) -> None:
    stored = counted(kind)
    source = make_nuclear(tmp_path / "in" / "nm", kind, stored)
    done = run("denoise", source, tmp_path / "out", "--adapt", 0, "--orientations", 1, "--threads", 1, "--quiet")
    assert done.code == 0, done.err
    (path,) = (tmp_path / "out").iterdir()
    ds, noise = pydicom.dcmread(path), report_of(tmp_path / "out")["figures"]["noise"]
    raw = not kind.startswith("RECON")
    assert (noise["law"] == "poisson" and noise["gain"] == 1.0 and not noise["correlated"]) == raw
    assert ("poisson noise" in ds.DerivationDescription and "gain=1," in ds.DerivationDescription) == raw
    assert "level_interval_95" not in noise if raw else "level_interval_95" in noise  # counts need no estimate
    assert ds.pixel_array.shape == stored.shape
    assert ds.pixel_array.mean() == pytest.approx(stored.mean(), rel=0.03)
    assert rms(ds.pixel_array - organ()) < 0.9 * rms(stored - organ())
    assert not read(path).volumes[0].meta["counts"]
    assert shutil.which("dciodvfy") is None or errors(source) == errors(path) == set()
