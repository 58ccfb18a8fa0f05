"""What other software makes of derived series: highdicom, dcm2niix and an Orthanc server, where they are installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from made_nuclear import make_nuclear
from made_scans import CT, MR, PT, make_enhanced, make_series, pixels
from monai.data import MetaTensor

from n2s_med.volumes import Provenance, read, write


def tool(name: str) -> str:
    """Return the path of a command, beside this Python or on the path; skip where there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def derived(path: Path, tmp_path: Path, provenance: Provenance) -> tuple[MetaTensor, Path]:
    (volume,) = read(path).volumes
    return volume, write(volume, tmp_path / "out", provenance=provenance)


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_highdicom_finds_the_same_geometry_and_values(tmp_path, provenance, sop_class):
    volume, out = derived(make_series(tmp_path / "s", sop_class), tmp_path, provenance)
    slices = [pydicom.dcmread(path) for path in sorted(out.iterdir())]
    other = highdicom.get_volume_from_series(slices, apply_real_world_transform=False)
    ras = np.diag([-1, -1, 1, 1]) @ other.affine
    where = np.linalg.inv(volume.affine.numpy()) @ ras
    step = max(float(ds.get("RescaleSlope", 1)) for ds in slices)
    for index in np.ndindex(other.spatial_shape):
        x, y, z = np.rint((where @ [*index, 1])[:3]).astype(int)
        assert abs(float(other.array[index]) - float(volume[0, x, y, z])) <= step / 2 * 1.001
    np.testing.assert_allclose(where[:3], np.rint(where[:3]), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:SimpleITK")
@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_simpleitk_finds_the_same_geometry_and_values(tmp_path, provenance, sop_class):
    volume, out = derived(make_series(tmp_path / "s", sop_class), tmp_path, provenance)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in sorted(out.iterdir())])
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ lps, volume.affine, atol=1e-6)
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_allclose(values, volume[0], rtol=1e-5, atol=float(volume.max()) / 65535)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:SimpleITK")
@pytest.mark.parametrize("kind", ["enhanced", "nuclear"])
def test_simpleitk_finds_the_same_values_of_several_frames(tmp_path, provenance, kind):
    volume, out = derived(made(kind, tmp_path), tmp_path, provenance)
    (path,) = out.iterdir()
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    assert sorted(map(tuple, np.moveaxis(values, 2, 0).reshape(values.shape[2], -1))) == sorted(
        map(tuple, volume[0].permute(2, 0, 1).reshape(values.shape[2], -1).numpy())
    )


def made(kind: str, folder: Path) -> Path:
    stored = pixels((5, 16, 16))
    if kind == "nuclear":
        return make_nuclear(folder / "nm", "RECON TOMO")
    if kind == "enhanced":
        return make_enhanced(folder / "e" / "file", MR, stored).parent
    return make_series(folder / "s", {"ct": CT, "mr": MR, "pet": PT}[kind], stored=stored)


@pytest.mark.parametrize("kind", ["ct", "mr", "pet", "enhanced"])
def test_dcm2niix_finds_the_same_geometry_and_values(tmp_path, provenance, kind):
    volume, out = derived(made(kind, tmp_path), tmp_path, provenance)
    (tmp_path / "nifti").mkdir()
    command = [tool("dcm2niix"), "-z", "n", "-f", "image", "-o", tmp_path / "nifti", out]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (tmp_path / "nifti").glob("*.nii")
    image = nib.load(path)
    to_ours = np.linalg.inv(volume.affine.numpy()) @ image.affine
    np.testing.assert_allclose(to_ours[:3], np.rint(to_ours[:3]), atol=1e-3)
    values = image.get_fdata()
    assert sorted(values.shape) == sorted(volume.shape[1:])
    step = float(volume.max()) / 1000
    for index in np.ndindex(values.shape):
        x, y, z = np.rint((to_ours @ [*index, 1])[:3]).astype(int)
        assert abs(values[index] - float(volume[0, x, y, z])) <= step


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    """A server of its own on the loopback address; its address."""
    command = tool("Orthanc")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"HttpPort": port, "HttpBindAddresses": ["127.0.0.1"], "DicomServerEnabled": False,
                "StorageDirectory": str(tmp_path / "store"), "IndexDirectory": str(tmp_path / "store"),
                "AuthenticationEnabled": False}  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    server = subprocess.Popen(
        [command, tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield answering(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=20)


def answering(address: str) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"{address}/system", timeout=1):
                return address
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


@pytest.mark.parametrize("kind", ["ct", "mr", "pet", "enhanced", "nuclear"])
def test_orthanc_returns_what_it_was_given(tmp_path, provenance, kind, orthanc):
    _, out = derived(made(kind, tmp_path), tmp_path, provenance)
    for path in sorted(out.iterdir()):
        posted = urllib.request.Request(f"{orthanc}/instances", data=path.read_bytes(), method="POST")
        with urllib.request.urlopen(posted, timeout=10) as answer:
            stored = json.load(answer)
        assert stored["Status"] == "Success"
        with urllib.request.urlopen(f"{orthanc}{stored['Path']}/file", timeout=10) as answer:
            assert answer.read() == path.read_bytes()
