"""The application for MONAI Deploy, run as its users run it: ``python app.py -i STUDY -o OUT -m BUNDLE``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from bundle_runs import BUNDLES, DIMS, NAMES, run, small_bundle
from monai.bundle import ckpt_export

from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.volumes import read

pytest.importorskip("monai.deploy", reason="MONAI Deploy is not installed: make consumers")

from monai.deploy.operators.monai_bundle_inference_operator import get_bundle_config

APP = BUNDLES.parent / "integrations" / "monai_deploy" / "app.py"


def study_of_two_series(folder: Path) -> Path:
    """A study with a PET series, and a CT image that a PET bundle is not for."""
    activity = pet_phantom((24, 24, 12), (7.0, 7.0, 7.0)).activity
    counts = torch.poisson(activity.clamp_min(0) / 50, generator=torch.Generator().manual_seed(3))
    write_pet_series(counts * 50, folder / "pet", spacing_mm=(7.0, 7.0, 7.0), gain=50.0)
    image = pydicom.dcmread(next((folder / "pet").iterdir()))
    image.Modality = "CT"
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    image.SeriesInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["another series"])
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["image"])
    (folder / "ct").mkdir()
    image.save_as(folder / "ct" / "image.dcm")
    return folder


def application(study: Path, output: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run the application in a process of its own."""
    overrides = json.dumps({"orientations": 1, "precision": "fp32"})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "N2S_OVERRIDES": overrides}
    words = [sys.executable, APP, "-i", study, "-o", output, "-m", bundle]
    return subprocess.run(
        list(map(str, words)), env=environment, cwd=study, capture_output=True, text=True, timeout=1800
    )


def test_a_study_comes_back_as_the_bundle_gives_it(tmp_path):
    bundle = small_bundle("pet_poisson", tmp_path / "pet_poisson")
    study = study_of_two_series(tmp_path / "study")
    done = application(study, tmp_path / "out", bundle)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    run(bundle, "inference", kind="infer", dataset_dir=str(study / "pet"), orientations=1, precision="fp32")
    (found,), (expected,) = read(tmp_path / "out").volumes, read(bundle / "eval").volumes
    assert found.meta["modality"] == "pet"
    assert found.meta["units"] == expected.meta["units"] == "BQML"
    assert np.array_equal(found.numpy(), expected.numpy())
    assert len(np.unique(found.numpy())) > 256
    assert torch.equal(found.affine, expected.affine)
    derived = pydicom.dcmread(found.meta["source"][0], stop_before_pixels=True)
    assert derived.ImageType[0] == "DERIVED"


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_reads_the_folder_and_the_exported_network(name, tmp_path):
    bundle = small_bundle(name, tmp_path / name)
    file = tmp_path / "model.ts"
    ckpt_export(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        use_trace=True,
        bundle_root=str(bundle),
    )
    folder, exported = (get_bundle_config(str(place), ["inference"]) for place in (bundle, file))
    for parser in (folder, exported):
        parser.update({"bundle_root": str(bundle)})
    v = torch.randn((1, 1, 9, 17, 12)[: 2 + DIMS[name]], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = folder.get_parsed_content("network").eval()(v)
        torch.testing.assert_close(torch.jit.load(file)(v), expected)
    assert exported.get("_meta_")["name"] == folder.get("_meta_")["name"]
    assert exported.get("inferer") == folder.get("inferer")


def test_a_study_without_the_modality_is_refused(tmp_path):
    bundle = small_bundle("mr_gaussian", tmp_path / "mr_gaussian")
    done = application(study_of_two_series(tmp_path / "study"), tmp_path / "out", bundle)
    assert "no selected series that can be read" in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("*"))
