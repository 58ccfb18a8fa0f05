"""The demonstration, from nothing to its table."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest

from n2s_med import demo


def test_the_phantom_is_denoised_from_dicom_to_dicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        demo.main(["--out", str(tmp_path), "--seconds", "3"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    psnr = next(line for line in out.splitlines() if line.startswith("PSNR")).split()
    noisy_db, alone_db, adapted_db = map(float, psnr[-3:])
    assert alone_db > noisy_db + 3
    assert adapted_db > noisy_db + 10
    for name in ("alone", "adapted"):
        assert str(tmp_path / f"{name}.report.html") in out
        assert (tmp_path / f"{name}.report.html").is_file()
    noisy, denoised = sorted((tmp_path / "noisy").iterdir()), sorted((tmp_path / "adapted").iterdir())
    assert len(noisy) == len(denoised) == 48
    slices = {float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in noisy}
    assert slices == {float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in denoised}


def test_an_own_scan_of_another_kind_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = tmp_path / "scan.txt"
    scan.write_text("no scan")
    with pytest.raises(SystemExit) as end:
        demo.main(["--out", str(tmp_path / "out"), "--input", str(scan)])
    assert end.value.code == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_denoise", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        demo.main(["--out", str(tmp_path), "--input", str(tmp_path / "SCAN.NII")])
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted: nothing half-written is left\n"


def test_the_output_is_named_after_ones_own_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Path] = []
    monkeypatch.setattr(demo, "_denoise", lambda _, output, __: outputs.append(output) or [])
    for name in ("scan.nii.gz", "SCAN.NII", "series"):
        with pytest.raises(SystemExit):
            demo.main(["--out", str(tmp_path), "--input", name])
    assert [output.name for output in outputs] == ["scan.nii.gz", "SCAN.NII", "series_denoised"]


def test_the_gain_makes_the_background_hold_twenty_counts() -> None:
    background = demo.pet_phantom().activity[demo.pet_phantom().background]
    assert np.isclose(float(background.mean()) / demo.GAIN_BQML, 20, rtol=0.01)
