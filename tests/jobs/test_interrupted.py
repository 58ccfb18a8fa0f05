"""Ctrl-C, SIGTERM and kill -9 in the middle of denoising: nothing half-written, and the next run tidies up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from job_scans import FAST, TINY, Run, datasets, denoise, files_below, values_of

MOMENTS = {
    "training": "n2s_med.training.trainer.Trainer._one_step",
    "denoising": "n2s_med.denoise.Denoiser._score",
    "writing": "n2s_med.atomic._flush",
    "reporting": "n2s_med.jobs.denoise.write_report",
}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped(
    run: Run,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    number: signal.Signals,
    code: int,
) -> None:
    """The last moment comes when the output is whole and in its place."""
    monkeypatch.setattr(MOMENTS[moment], lambda *_, **__: signal.raise_signal(number))
    done = denoise(run, scan, tmp_path / "out.nii.gz", "--noise", "gaussian")
    assert done.code == code
    assert done.out == ""
    assert "Traceback" not in done.err
    assert files_below(tmp_path) == (["out.nii.gz"] if moment == "reporting" else []) + ["scan.nii.gz"]


def test_stopped_while_a_series_is_written(
    run: Run, pet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be replaced is still there."""
    assert denoise(run, pet, tmp_path / "out").code == 0
    before = [image.SOPInstanceUID for image in datasets(tmp_path / "out")]
    slices: list[Any] = []

    def interrupt(*arguments: Any) -> None:
        slices.append(arguments)
        if len(slices) == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("n2s_med.volumes.dicom_writer._save", interrupt)
    assert denoise(run, pet, tmp_path / "out", "--seed", 3, "--overwrite").code == 130
    assert [image.SOPInstanceUID for image in datasets(tmp_path / "out")] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.report.html", "out.report.json"]


KILLED = """
import os, signal
from n2s_med.cli import main
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_killed_outright_while_writing(run: Run, scan: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.nii.gz"
    command = ("denoise", scan, output, "--from-scratch", *FAST, *TINY, "--orientations", "1", "--noise", "gaussian")
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout == ""
    assert not output.exists()
    assert any(".partial-" in name for name in files_below(tmp_path))
    assert run("inspect", tmp_path).out.count("will be denoised") == 1
    assert denoise(run, scan, output, "--noise", "gaussian").code == 0
    assert files_below(tmp_path) == ["out.nii.gz", "out.report.html", "out.report.json", "scan.nii.gz"]
    assert values_of(output).shape == values_of(scan).shape
