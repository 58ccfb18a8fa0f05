"""The BIDS app: which images are denoised, what the derivative looks like, and what the validator says of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from batch_scans import OPTIONS, content
from job_scans import Run, nifti, noisy

from n2s_med.jobs.denoise import DenoiseJob

pytestmark = pytest.mark.usefixtures("identity")

PET = {
    "TracerName": "FDG", "TracerRadionuclide": "F18", "Manufacturer": "Nowhere", "ManufacturersModelName": "None",
    "Units": "Bq/mL", "TimeZero": "10:00:00", "ScanStart": 0, "InjectionStart": 0, "FrameTimesStart": [0],
    "FrameDuration": [600], "AcquisitionMode": "list mode", "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0, "ReconMethodName": "OSEM", "ReconMethodParameterLabels": ["none"],
    "ReconFilterType": "none", "AttenuationCorrection": "none", "InjectedRadioactivity": 350,
    "InjectedRadioactivityUnits": "MBq", "InjectedMass": 1, "InjectedMassUnits": "g", "SpecificRadioactivity": 1,
    "SpecificRadioactivityUnits": "MBq/g", "ModeOfAdministration": "bolus", "BodyPart": "brain",
    "ReconMethodParameterUnits": ["none"], "ReconMethodParameterValues": [0],
}  # fmt: skip


def put(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def image(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti(path, noisy(shape=shape or (8, 8, 8)))
    if len(shape) == 4:
        timed = nib.load(path)
        timed.header.set_zooms((*timed.header.get_zooms()[:3], 2.0))
        nib.save(timed, path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two participants: structural, functional, diffusion and PET."""
    root = tmp_path / "bids"
    put(root / "dataset_description.json", {"Name": "Nothing", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    (root / "README").write_text("Made for a test, of noise alone. " * 8)
    put(root / "task-rest_bold.json", {"TaskName": "rest", "RepetitionTime": 2.0, "EchoTime": 0.03})
    put(root / "T1w.json", {"EchoTime": 0.001, "Manufacturer": "Nowhere"})
    for subject in ("sub-01", "sub-02"):
        image(root / subject / "anat" / f"{subject}_T1w.nii.gz")
    put(root / "sub-01" / "anat" / "sub-01_T1w.json", {"EchoTime": 0.002})
    image(root / "sub-01" / "anat" / "sub-01_T1map.nii.gz")
    put(root / "sub-01" / "anat" / "sub-01_T1map.json", {"Units": "s"})
    image(root / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz", 8, 8, 4, 2)
    image(root / "sub-01" / "func" / "sub-01_task-rest_part-phase_bold.nii.gz", 8, 8, 4, 2)
    put(root / "sub-01" / "func" / "sub-01_task-rest_part-phase_bold.json", {"Units": "rad"})
    image(root / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_dwi.nii.gz", 8, 8, 4, 2)
    (root / "dwi.bval").write_text("0 1000\n")
    (root / "dwi.bvec").write_text("0 1\n0 0\n0 0\n")
    image(root / "sub-02" / "pet" / "sub-02_pet.nii.gz")
    put(root / "sub-02" / "pet" / "sub-02_pet.json", PET)
    return root


def bids(run: Run, root: Path, out: Path, *options: object) -> Any:
    return run("bids", root, out, "participant", *OPTIONS, *options)


RESULTS = [
    "sub-01/anat/sub-01_desc-denoised_T1w",
    "sub-01/func/sub-01_task-rest_desc-denoised_bold",
    "sub-01/ses-a/dwi/sub-01_ses-a_desc-denoised_dwi",
    "sub-02/anat/sub-02_desc-denoised_T1w",
    "sub-02/pet/sub-02_desc-denoised_pet",
]


def test_the_derivative(run: Run, dataset: Path) -> None:
    out = dataset / "derivatives" / "n2s-med"
    done = bids(run, dataset, out)
    assert done.code == 0, done.err
    found = content(out)
    expected = {".bidsignore", "README.md", "dataset_description.json"}
    expected |= {f"{name}{ending}" for name in RESULTS for ending in (".nii.gz", ".json")}
    expected |= {f"sub-01/ses-a/dwi/sub-01_ses-a_dwi{ending}" for ending in (".bval", ".bvec")}
    assert set(found) == expected
    assert "left out: sub-01/anat/sub-01_T1map.nii.gz" in done.err
    assert "part-phase is not a magnitude" in done.err
    sidecar = json.loads((out / f"{RESULTS[0]}.json").read_text())
    assert sidecar == {
        "EchoTime": 0.002,
        "Manufacturer": "Nowhere",
        "Sources": ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"],
        "SkullStripped": False,
        "Description": "Denoised by n2s-med",
    }
    assert json.loads((out / f"{RESULTS[1]}.json").read_text())["TaskName"] == "rest"
    assert (out / "sub-01/ses-a/dwi/sub-01_ses-a_dwi.bval").read_text() == "0 1000\n"
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["DatasetLinks"] == {"raw": "../.."}
    again = bids(run, dataset, out)
    assert again.code == 0
    assert "done: " not in again.err
    assert content(out) == found


def test_metadata_that_changed_are_a_change(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert bids(run, dataset, tmp_path / "out").code == 0
    put(dataset / "sub-01" / "anat" / "sub-01_T1w.json", {"EchoTime": 0.003})
    assert bids(run, dataset, tmp_path / "out").code == 3
    assert bids(run, dataset, tmp_path / "out", "--overwrite").code == 0
    assert json.loads((tmp_path / "out" / f"{RESULTS[0]}.json").read_text())["EchoTime"] == 0.003


def test_frames_of_pet_last_as_long_as_it_is_said_further_up(
    run: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each then has a noise of its own."""
    seen: dict[str, object] = {}
    one = DenoiseJob.one

    def look(self: DenoiseJob, volume: Any, target: Path, *rest: Any) -> Any:
        seen[target.name] = (volume.meta.get("durations_s"), volume.meta["units"])
        return one(self, volume, target, *rest)

    monkeypatch.setattr(DenoiseJob, "one", look)
    image(dataset / "sub-01" / "pet" / "sub-01_pet.nii.gz", 8, 8, 4, 2)
    put(dataset / "pet.json", {"FrameDuration": [60, 240], "Units": "Bq/mL"})
    assert bids(run, dataset, tmp_path / "out").code == 0
    assert seen["sub-01_desc-denoised_pet.nii.gz"] == ((60.0, 240.0), "BQML")
    assert seen["sub-02_desc-denoised_pet.nii.gz"] == ((600.0,), "BQML")


def test_some_participants_alone(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert bids(run, dataset, tmp_path / "out", "--participant-label", "02").code == 0
    assert {name.split("/")[0] for name in content(tmp_path / "out") if "/" in name} == {"sub-02"}
    assert "there is no sub-03" in bids(run, dataset, tmp_path / "out", "--participant-label", "sub-03").error


def test_what_is_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert "it is the input" in bids(run, dataset, dataset).error
    assert "it is no BIDS data set" in bids(run, dataset / "sub-01", tmp_path / "out").error
    shutil.copytree(dataset, tmp_path / "other")
    assert "it holds another BIDS data set" in bids(run, dataset, tmp_path / "other").error
    (dataset / "T1w.json").write_text("{")
    assert "T1w.json: no readable JSON" in bids(run, dataset, tmp_path / "out").error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def with_sd_maps(monkeypatch: pytest.MonkeyPatch, identity: None) -> None:
    """The job writes SD maps and reports too."""
    del identity
    one = DenoiseJob.one

    def more(self: DenoiseJob, volume: Any, target: Path, *rest: Any) -> Any:
        result = one(self, volume, target, *rest)
        stem = str(target).removesuffix(".nii.gz")
        sd_map = Path(f"{stem}.sd.nii.gz")
        shutil.copy(target, sd_map)
        for ending in (".report.html", ".report.json"):
            Path(f"{stem}{ending}").write_text("{}")
        return replace(result, sd_map=sd_map)

    monkeypatch.setattr(DenoiseJob, "one", more)


@pytest.mark.usefixtures("with_sd_maps")
def test_the_validator_finds_no_error(run: Run, dataset: Path, tmp_path: Path) -> None:
    beside_python = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    validator = beside_python or shutil.which("bids-validator-deno") or pytest.skip("no bids-validator-deno")
    out = tmp_path / "out"
    assert bids(run, dataset, out, "--sd-map").code == 0
    assert (out / "sub-02/pet/sub-02_desc-denoisedstd_pet.nii.gz").is_file()
    assert not list(out.rglob("*.sd.nii.gz"))
    for folder in (dataset, out):
        told = subprocess.run([validator, "--json", str(folder)], capture_output=True, text=True, timeout=300)
        issues = json.loads(told.stdout)["issues"]["issues"]
        assert [i for i in issues if i["severity"] == "error"] == [], folder.name
