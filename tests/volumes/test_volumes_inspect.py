"""``n2s-med inspect``: what a path holds, as a table and as JSON."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_nuclear import make_nuclear
from made_scans import CT, PT, SECRETS, make_series, pixels

from n2s_med import cli
from n2s_med.errors import UnsupportedError
from n2s_med.jobs.inspect import Found, inspect, table


def tilted(ds, index):  # type: ignore[no-untyped-def]
    ds.ImagePositionPatient = [-10, -20 + index, 3 * index]
    ds.Manufacturer = "GE MEDICAL SYSTEMS"


def localizer(ds, index):  # type: ignore[no-untyped-def]  # noqa: ARG001
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_series(tmp_path / "ct", CT, edit=tilted)
    make_series(tmp_path / "pet", PT, study="two", edit=lambda ds, _: delattr(ds, "PatientWeight"))
    make_series(tmp_path / "scout", CT, study="three", stored=pixels((1, 6, 5)), edit=localizer)
    make_nuclear(tmp_path / "nm", "TOMO")
    nib.save(nib.Nifti1Image(pixels((4, 5, 6)), np.eye(4)), tmp_path / "scan.nii")
    return tmp_path


def test_every_scan_has_a_row_with_what_will_be_done(folder: Path) -> None:
    found = {Path(scan.path).name: scan for scan in inspect(folder)}
    ct, pet, nm, nifti, scout = (found[name] for name in ("ct", "pet", "nm", "scan.nii", "three-001"))
    assert (ct.modality, ct.vendor, ct.units, ct.shape) == ("ct", "GE", "HU", (1, 5, 6, 4))
    assert ct.verdict == "will be denoised in 3D"
    assert "tilted by 18.4 degrees" in ct.notes[0]
    assert pet.notes == ("no SUV: without patient weight",)
    assert nm.verdict == "will be denoised in 3D, along the angle, 2 volumes one by one"
    assert "raw counts" in nm.notes[-1]
    assert "--modality" in nifti.notes[0]
    assert scout == Found(scout.scan, scout.path, "left out: a localizer is a planning view, not a volume")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_table_and_json_say_the_same_and_nothing_of_the_patient(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    plain, data = said(capsys, "inspect", folder), said(capsys, "inspect", folder, "--json")
    rows = json.loads(data)
    assert len(rows) == 5
    for row in rows:
        assert f"{row['verdict']}\n" in plain
        assert all(f"note: {note}\n" in plain for note in row["notes"])
    assert not any(secret in plain + data for secret in SECRETS)


def test_series_of_one_name_are_told_apart_by_where_they_are(tmp_path: Path) -> None:
    for name in ("a", "b\nc"):
        make_series(tmp_path / "deep" / name, CT, study=name)
    first, second = table(inspect(tmp_path)).splitlines()[1:]
    assert [line.split("  ")[1].strip() for line in (first, second)] == ["a", r"b\nc"]
    (alone,) = table(inspect(tmp_path / "deep" / "a" / "a-001")).splitlines()[1:]
    assert "  a-001  " in alone


def test_a_folder_that_cannot_be_read_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may enter any, so it is feigned."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "pet" and access(path, mode))
    (row,) = (scan for scan in inspect(folder) if scan.path == str(folder / "pet"))
    assert row.verdict == "left out: the folder cannot be read (Permission denied)"


def test_columns_are_aligned() -> None:
    scans = [Found("a", "p", "v1", vendor="Siemens"), Found("longer name", "p", "v2")]
    head, first, second = table(scans).splitlines()
    assert head.index("verdict") == first.index("v1") == second.index("v2")


def test_a_path_without_a_scan_is_an_error(tmp_path: Path) -> None:
    make_series(tmp_path, CT, stored=pixels((1, 6, 5)), edit=localizer)
    with pytest.raises(UnsupportedError, match="localizer"):
        inspect(tmp_path)
