"""The app for MONAI Label: by its own server's endpoint, a scan comes back as intensities."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import BUNDLES, run, small_bundle, values_of, write_scan

from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.volumes import read

pytest.importorskip("monailabel", reason="MONAI Label is not installed: make consumers")

APP = BUNDLES.parent / "integrations" / "monai_label"
FAST = {"orientations": 1, "precision": "fp32"}


def fast_bundle(name: str, folder: Path) -> Path:
    """A small bundle whose inference takes a moment."""
    bundle = small_bundle(name, folder)
    file = bundle / "configs" / "inference.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | FAST), encoding="utf-8")
    return bundle


@pytest.fixture
def server(tmp_path, monkeypatch):
    """MONAI Label's web application over two bundles, and its studies."""
    for name in ("ct_gaussian", "pet_poisson"):
        fast_bundle(name, tmp_path / name)
    studies = tmp_path / "studies"
    studies.mkdir()
    write_scan("ct_gaussian", studies / "scan.nii.gz")
    bundles = ",".join(str(tmp_path / name) for name in ("ct_gaussian", "pet_poisson"))
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(APP))
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", str(studies))
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"bundles": bundles})
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_AUTO_RELOAD", False)
    from fastapi.testclient import TestClient
    from monailabel.app import app

    return TestClient(app)


def asked(server, model: str, image: str, folder: Path, **params: object) -> Path:
    """Ask the server to denoise an image; the file that it sends."""
    form = {"params": json.dumps({"device": "cpu", **params})}
    answer = server.post(f"/infer/{model}", params={"image": image, "output": "image"}, data=form)
    assert answer.status_code == 200, answer.text
    suffix = str(params.get("result_extension", ".nii.gz"))
    file = folder / f"answer{suffix}"
    file.write_bytes(answer.content)
    return file


def test_the_server_tells_what_it_has(server):
    told = server.get("/info/").json()
    assert set(told["models"]) == {"ct_gaussian", "pet_poisson"}
    assert told["models"]["ct_gaussian"]["type"] == "others"
    assert told["labels"] == []


def test_a_scan_comes_back_as_the_bundle_gives_it(server, tmp_path):
    found = asked(server, "ct_gaussian", "scan", tmp_path, result_dtype="uint8")
    scan = tmp_path / "studies" / "scan.nii.gz"
    run(tmp_path / "ct_gaussian", "inference", kind="infer", dataset_dir=str(scan), **FAST)
    expected = tmp_path / "ct_gaussian" / "eval" / "scan.nii.gz"
    assert nib.load(found).get_data_dtype() == np.float32
    assert np.array_equal(values_of(found), values_of(expected))
    assert np.allclose(nib.load(found).affine, nib.load(expected).affine, atol=1e-4)


def test_a_dicom_series_comes_back_in_its_units(server, tmp_path):
    activity = pet_phantom((24, 24, 12), (7.0, 7.0, 7.0)).activity
    counts = torch.poisson(activity.clamp_min(0) / 50, generator=torch.Generator().manual_seed(3))
    write_pet_series(counts * 50, tmp_path / "series", spacing_mm=(7.0, 7.0, 7.0), gain=50.0)
    found = asked(server, "pet_poisson", str(tmp_path / "series"), tmp_path, result_extension=".nii.gz")
    (source,) = read(tmp_path / "series").volumes
    (denoised,) = read(found).volumes
    assert denoised.shape == source.shape
    assert np.allclose(denoised.affine, source.affine, atol=1e-3)
    assert float(denoised.mean()) == pytest.approx(float(source.mean()), rel=0.05)
    assert float((denoised - source).abs().max()) > 0


def test_a_format_that_cannot_hold_intensities_is_refused(server):
    form = {"params": json.dumps({"device": "cpu", "result_extension": ".seg.nrrd"})}
    with pytest.raises(Exception, match="cannot hold intensities"):
        server.post("/infer/ct_gaussian", params={"image": "scan", "output": "image"}, data=form)
