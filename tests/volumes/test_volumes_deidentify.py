"""De-identified results: nothing of the patient is left, what belongs together stays together, PET keeps its SUV."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from made_scans import CT, MR, PT, SECRETS, make_enhanced, make_series, pixels
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from n2s_med.errors import ConfigurationError
from n2s_med.volumes import Deidentifier, Provenance, read, write, write_sd_map

pytest.importorskip("dicomanonymizer", reason="dicom-anonymizer is not installed")

HIDDEN = "Mother of Jane"
KEY = Deidentifier(b"a secret of many bytes")


def revealing(ds: Dataset, _: int) -> None:
    """Put the patient where only a thorough search finds them: deep down, in comments, in private attributes."""
    deep = Dataset()
    deep.ReferringPhysicianName, deep.ContentDate, deep.PatientComments = HIDDEN, "20200102", SECRETS[0]
    ds.DerivationCodeSequence = [deep]
    ds.ImageComments = ds.StudyDescription = HIDDEN
    ds.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "LO", HIDDEN)


def written(folder: Path, provenance: Provenance, sop_class: str = CT, study: str = "one", **options) -> list[Dataset]:
    source = make_series(folder / study, sop_class, study=study, edit=options.pop("edit", None))
    out = write(read(source).volumes[0], folder / f"{study}-out", provenance=provenance, **options)
    return [pydicom.dcmread(path) for path in sorted(out.iterdir())]


@pytest.fixture
def without(provenance: Provenance) -> Provenance:
    """A provenance that takes the identity out."""
    return replace(provenance, deidentifier=KEY)


def uids_of(ds: Dataset) -> set[str]:
    """Every UID that names something of the study, however deep."""
    found = {str(e.value) for e in ds.iterall() if e.VR == "UI" and e.value}
    return {uid for uid in found if uid not in UID_dictionary}


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_nothing_of_the_patient_is_left(tmp_path, without, sop_class):
    written(tmp_path, without, sop_class, edit=revealing)
    sources = [pydicom.dcmread(path) for path in (tmp_path / "one").iterdir()]
    secrets = [*SECRETS, HIDDEN, "Series of slices", "20200102", *(uid for ds in sources for uid in uids_of(ds))]
    for path in (tmp_path / "one-out").iterdir():
        content = path.read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == []
        ds = pydicom.dcmread(path)
        assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "MODIFIED")
        assert [code.CodeValue for code in ds.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
        assert (ds.SeriesDescription, ds.PatientBirthDate, ds.AccessionNumber) == ("(denoised)", "", "")
        assert "Denoised by n2s-med" in ds.DerivationDescription
        assert not [element for element in ds.iterall() if element.tag.is_private]


def test_frames_of_an_enhanced_image_and_its_sd_map(tmp_path, without):
    source = make_enhanced(tmp_path / "e" / "file", MR, pixels((4, 6, 5)))
    (volume,) = read(source).volumes
    (path,) = write(volume, tmp_path / "out", provenance=without).iterdir()
    sd = write_sd_map(volume, tmp_path / "sd.dcm", provenance=without)
    secrets = [*SECRETS, "20200102", *uids_of(pydicom.dcmread(source))]
    for file in (path, sd):
        assert [secret for secret in secrets if secret.encode() in file.read_bytes()] == []
    derived, other = pydicom.dcmread(path), pydicom.dcmread(sd)
    assert (other.StudyInstanceUID, other.PatientID) == (derived.StudyInstanceUID, derived.PatientID)
    assert other.SeriesDescription == "(SD of denoised)"
    assert other.file_meta.MediaStorageSOPInstanceUID == other.SOPInstanceUID
    frames = [
        group.DerivationImageSequence[-1].SourceImageSequence[0] for group in derived.PerFrameFunctionalGroupsSequence
    ]
    source_uid = pydicom.dcmread(source).SOPInstanceUID
    assert {frame.ReferencedSOPInstanceUID for frame in frames} == {KEY.uid(source_uid)}


def test_what_belongs_together_stays_together(tmp_path, without):
    """Over files, series, runs and processes, for whoever has the key, and for nobody else."""
    first = written(tmp_path / "a", without)
    again = written(tmp_path / "b", without)
    assert [ds.SOPInstanceUID for ds in first] == [ds.SOPInstanceUID for ds in again]
    source = {ds.SOPInstanceUID for ds in map(pydicom.dcmread, (tmp_path / "a" / "one").iterdir())}
    named = {ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in first}
    assert named == {KEY.uid(uid) for uid in source}
    assert len({(ds.StudyInstanceUID, ds.FrameOfReferenceUID, ds.SeriesInstanceUID, ds.PatientID) for ds in first}) == 1
    other_study = written(tmp_path / "a", without, MR, study="two")
    assert other_study[0].PatientID == first[0].PatientID
    assert other_study[0].StudyInstanceUID != first[0].StudyInstanceUID
    other_key = written(tmp_path / "c", replace(without, deidentifier=Deidentifier(b"another secret, as long")))
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "StudyDate"):
        assert other_key[0][keyword].value != first[0][keyword].value


def test_patients_are_told_apart_and_those_without_a_name_have_none(tmp_path, without):
    def of(patient: str, study: str) -> Dataset:
        return written(tmp_path, without, study=study, edit=lambda ds, _: setattr(ds, "PatientID", patient))[0]

    one, two, nobody = of("A", "one"), of("B", "two"), of("", "three")
    assert len({one.PatientID, two.PatientID, ""}) == 3
    assert one.StudyDate != two.StudyDate
    assert (nobody.PatientID, nobody.PatientName) == ("", "")


def test_intervals_weight_and_suv_are_kept(tmp_path, without):
    def later(ds: Dataset, _: int) -> None:
        ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200105"
        ds.AcquisitionDateTime = "20200105100100.5"

    (ds, *_) = written(tmp_path, without, PT, edit=later)
    day = [datetime.strptime(ds[name].value, "%Y%m%d") for name in ("StudyDate", "AcquisitionDate")]
    assert (day[1] - day[0]).days == 3
    assert day[0] < datetime(2020, 1, 2)
    assert (ds.StudyTime, ds.AcquisitionTime) == ("090000", "100100")
    assert ds.AcquisitionDateTime == f"{ds.AcquisitionDate}100100.5"
    before, after = (read(tmp_path / name).volumes[0] for name in ("one", "one-out"))
    assert before.meta["suv"]["factor"] is not None
    assert after.meta["suv"] == before.meta["suv"]
    np.testing.assert_allclose(after, before, atol=0.01)  # half a stored step


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools (dciodvfy) is not installed")
@pytest.mark.parametrize("name", ["ibsi_sts002_cropped/dicom/PET", "enhanced/mr_siemens_vida_xa10_fmri",
                                  "ct/dicom_philips_ingenuity_phantom_5mm"])  # fmt: skip
def test_real_series_break_no_rule_that_their_sources_keep(data, tmp_path, without, name):
    (volume,) = read(data / name).volumes
    files = sorted(write(volume, tmp_path / "out", provenance=without).iterdir())

    def errors(path: Path | str) -> set[str]:
        told = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace", check=False)
        return {line for line in told.stderr.splitlines() if line.startswith("Error")}

    assert errors(files[0]) <= errors(volume.meta["source"][0])
    assert subprocess.run(["dcentvfy", *files], capture_output=True, check=False).returncode == 0


def test_text_of_a_nifti_header(tmp_path, without):
    image = nib.Nifti1Image(pixels((4, 5, 6)).astype(np.float32), np.eye(4))
    for name in ("descrip", "db_name", "aux_file"):
        image.header[name] = b"Doe^Jane"
    nib.save(image, tmp_path / "in.nii")
    out = write(read(tmp_path / "in.nii").volumes[0], tmp_path / "out.nii", provenance=without)
    assert b"Doe" not in out.read_bytes()


def test_keys_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="no key can be read"):
        Deidentifier.of_file(tmp_path / "absent")
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ConfigurationError, match="fewer than 16 bytes"):
        Deidentifier.of_file(tmp_path / "key")
    (tmp_path / "key").write_text("as long as it should be\n")
    key = Deidentifier.of_file(tmp_path / "key")
    assert key == Deidentifier(b"as long as it should be")
    assert "as long" not in repr(key) + key.fingerprint
    monkeypatch.setitem(sys.modules, "dicomanonymizer", None)
    with pytest.raises(ConfigurationError, match=r"n2s-med\[deidentify\]"):
        Deidentifier.of_file(tmp_path / "key")
