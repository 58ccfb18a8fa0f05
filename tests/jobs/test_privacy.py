"""What is known of the patient stays in the derived DICOM: no log, report, card or tracked run holds it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
from job_scans import SECRETS, Run, carried, datasets, denoise, train


def leaks(content: bytes) -> list[str]:
    return [secret for secret in SECRETS if re.search(rf"(?<![A-Za-z0-9]){secret}(?![A-Za-z0-9])".encode(), content)]


@pytest.fixture
def named(pet: Path, tmp_path: Path) -> Path:
    """A PET series in a folder that is named after the patient."""
    return Path(shutil.copytree(pet, tmp_path / "in" / "Doe^Jane 19610203"))


def test_denoising(run: Run, named: Path, tmp_path: Path, tables: Path) -> None:
    (tmp_path / "store").mkdir()
    shutil.copy(tables, tmp_path / "store")
    done = denoise(run, named, tmp_path / "out", "--sd-map", "--track", tmp_path / "store")
    assert done.code == 0, done.err
    assert leaks(done.out.encode() + done.err.encode()) == []
    for image in datasets(tmp_path / "out"):
        assert (str(image.PatientName), image.PatientID, image.PatientBirthDate) == ("Doe^Jane", "ID-4711", "19610203")
    told = [tmp_path / "out.report.html", tmp_path / "out.report.json"]
    told += [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(told) > 5
    for path in told:
        assert leaks(path.read_bytes() + str(path.relative_to(tmp_path)).encode()) == [], path
    page = told[0].read_text(encoding="utf-8")
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert pictures
    for picture in pictures:
        assert leaks(base64.b64decode(picture)) == []


def test_training(run: Run, named: Path, tmp_path: Path, tables: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(tables, tmp_path / "out")
    done = train(run, tmp_path / "out", named, modality="pet")
    assert done.code == 0, done.err
    assert leaks(done.out.encode() + done.err.encode()) == []
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"model.pt", "card.json", "mlflow.db"} <= {path.name for path in files}
    for path in files:
        assert leaks(path.read_bytes()) == [], path


def test_inspecting(run: Run, tmp_path: Path) -> None:
    """Labels are free of patient data; what is refused is named by its path alone."""
    carried("CT_small.dcm", tmp_path / "in")
    broken = carried("MR_small.dcm", tmp_path / "in")
    broken.write_bytes(broken.read_bytes()[:9000])
    done = run("inspect", tmp_path / "in", "--json")
    assert done.code == 0
    assert leaks(done.out.encode() + done.err.encode()) == []
    rows = json.loads(done.out)
    assert [row["verdict"].split(":")[0] for row in rows] == ["will be denoised in 2D", "left out"]
    assert rows[0]["modality"] == "ct"
    assert rows[0]["shape"] == [1, 128, 128, 1]
    assert rows[1]["path"] == str(broken)
    plain = run("inspect", tmp_path / "in")
    header, *lines = plain.out.splitlines()
    assert header.split()[:3] == ["scan", "where", "vendor"]
    assert [" HU " in line for line in lines] == [True, False]


def test_errors(run: Run, tmp_path: Path) -> None:
    """Damaged in each of its parts in turn, a file is read or refused without a word of the patient."""
    for size in range(400, 39000, 3000):
        file = carried("CT_small.dcm", tmp_path / "in")
        file.write_bytes(file.read_bytes()[:size])
        done = run("inspect", file)
        assert done.code == 1, size
        assert leaks(done.out.encode() + done.err.encode()) == []
        assert str(file) in done.error
