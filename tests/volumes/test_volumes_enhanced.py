"""Enhanced multi-frame files: read as the classic series they replace, and written frame by frame."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from made_scans import CT, ENHANCED, MR, PT, groups, make_enhanced, make_series, pixels, regridded

from n2s_med.errors import UnsupportedError
from n2s_med.volumes import Provenance, read, write, write_sd_map

LEGACY = {
    CT: highdicom.legacy.LegacyConvertedEnhancedCTImage,
    MR: highdicom.legacy.LegacyConvertedEnhancedMRImage,
    PT: highdicom.legacy.LegacyConvertedEnhancedPETImage,
}


def the_one(path: Path):
    (volume,) = read(path).volumes
    return volume


def written(volume, tmp_path: Path, provenance: Provenance) -> pydicom.Dataset:
    (path,) = sorted(write(volume, tmp_path / "out", provenance=provenance).iterdir())
    return pydicom.dcmread(path)


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_frames_lie_where_their_groups_say(tmp_path, sop_class):
    stored = pixels()
    volume = the_one(make_enhanced(tmp_path / "e", sop_class, stored))
    slopes = {CT: [1.0] * 4, MR: [0.5] * 4, PT: [0.1, 0.15, 0.2, 0.25]}[sop_class]
    offset = -1024 if sop_class == CT else 0
    for index in range(4):  # the last frame lies lowest
        expected = stored[index].T * slopes[index] + offset
        np.testing.assert_allclose(volume[0, :, :, 3 - index], expected, rtol=1e-6)
    expected = [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)
    assert volume.meta["units"] == {CT: "HU", MR: "arbitrary", PT: "BQML"}[sop_class]
    assert volume.meta["source_frames"] == (3, 2, 1, 0)


def test_scale_and_place_come_from_their_own_macros(tmp_path):
    """The same attributes in sequences that are unknown, or say something else, are not taken for them."""
    path = make_enhanced(tmp_path / "e", MR, pixels())
    volume, ds = the_one(path), pydicom.dcmread(path)
    for group in ds.PerFrameFunctionalGroupsSequence:
        misleading = pydicom.Dataset()
        misleading.RescaleSlope, misleading.ImagePositionPatient = "7", ["1", "2", "3"]
        group.add_new((0x5400, 0x9145), "SQ", [misleading])
        group.ReferencedImageSequence = [misleading]
    ds.save_as(path)
    again = the_one(path)
    np.testing.assert_array_equal(again, volume)
    np.testing.assert_array_equal(again.affine, volume.affine)


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_legacy_conversion_changes_nothing(tmp_path, sop_class):
    def complete(ds, index):  # noqa: ARG001
        ds.PositionReferenceIndicator, ds.ManufacturerModelName, ds.SoftwareVersions = "", "m", "1"
        ds.DeviceSerialNumber = "1"

    folder = make_series(tmp_path / "classic", sop_class, edit=complete)
    classic = the_one(folder)
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    converted = LEGACY[sop_class](slices, "1.2.3", 7, "1.2.3.4", 1)
    converted.save_as(tmp_path / "legacy")
    legacy = the_one(tmp_path / "legacy")
    np.testing.assert_array_equal(legacy, classic)
    np.testing.assert_allclose(legacy.affine, classic.affine)
    assert legacy.meta["units"] == classic.meta["units"]


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_identity_comes_back_within_half_a_step(tmp_path, provenance, sop_class):
    volume = the_one(make_enhanced(tmp_path / "e", sop_class, pixels()))
    ds = written(volume, tmp_path, provenance)
    again = the_one(tmp_path / "out")
    frames = ds.PerFrameFunctionalGroupsSequence
    steps = [float(frame.PixelValueTransformationSequence[0].RescaleSlope) for frame in frames]
    error = (again - volume).abs().amax(dim=(0, 1, 2))
    assert all(error[3 - index] <= step / 2 * (1 + 1e-5) for index, step in enumerate(steps))
    assert sop_class == PT or not error.any()
    np.testing.assert_allclose(again.affine, volume.affine)
    assert again.meta["units"] == volume.meta["units"]
    assert ds.SOPClassUID == ENHANCED[sop_class]


def test_every_frame_says_that_it_is_derived_and_from_which(tmp_path, provenance):
    path = make_enhanced(tmp_path / "e", MR, pixels())
    source, ds = pydicom.dcmread(path), written(the_one(path), tmp_path, provenance)
    assert ds.ImageType == ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    assert ds.NumberOfFrames == 4
    assert ds.SOPInstanceUID != source.SOPInstanceUID
    (evidence,) = ds.SourceImageEvidenceSequence
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    for index, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        assert frame.MRImageFrameTypeSequence[0].FrameType[0] == "DERIVED"
        (derivation,) = frame.DerivationImageSequence
        assert derivation.DerivationDescription == provenance.description()
        assert derivation.DerivationCodeSequence[0].CodeValue == "113087"
        (image,) = derivation.SourceImageSequence
        assert (image.ReferencedSOPInstanceUID, image.ReferencedFrameNumber) == (source.SOPInstanceUID, index + 1)
        assert frame.PlanePositionSequence == source.PerFrameFunctionalGroupsSequence[index].PlanePositionSequence


def test_pet_frames_get_a_slope_each_and_its_map_goes_along(tmp_path, provenance):
    volume = the_one(make_enhanced(tmp_path / "e", PT, pixels()))
    ds = written(regridded(volume, volume * 1.2345, volume.affine), tmp_path, provenance)
    slopes = [f.PixelValueTransformationSequence[0].RescaleSlope for f in ds.PerFrameFunctionalGroupsSequence]
    maps = [f.RealWorldValueMappingSequence[0].RealWorldValueSlope for f in ds.PerFrameFunctionalGroupsSequence]
    assert len(set(map(float, slopes))) == 4
    assert list(map(float, slopes)) == maps
    assert "PixelValueTransformationSequence" not in ds.SharedFunctionalGroupsSequence[0]
    again = the_one(tmp_path / "out")
    assert again.meta["units"] == "BQML"
    assert float((again - volume * 1.2345).abs().max()) <= max(maps) / 2 * 1.001


def echoes_and_phase(frame, index):
    """Two echoes of two slices each, as magnitude and as phase."""
    frame.update(groups(MREchoSequence={"EffectiveEchoTime": 2.0 + index % 2}))
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, index // 2 % 2]
    phase = index >= 4
    frame.MRImageFrameTypeSequence[0].ComplexImageComponent = "PHASE" if phase else "MAGNITUDE"
    frame.MRImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "P" if phase else "M", "NONE"]


def test_phase_is_left_out_and_echoes_are_volumes(tmp_path, provenance):
    stored = pixels((8, 6, 5))
    contents = read(make_enhanced(tmp_path / "e", MR, stored, edit=echoes_and_phase))
    (volume,), (refusal,) = contents.volumes, contents.refusals
    assert volume.shape == (2, 5, 6, 2)
    assert volume.meta["stacks"] == ("echo time 2", "echo time 3")
    np.testing.assert_array_equal(volume[1, :, :, 1], stored[3].T * 0.5)
    assert "4 of 8 frames" in refusal.label
    assert "phase" in refusal.reason
    ds = written(volume, tmp_path, provenance)
    assert ds.NumberOfFrames == len(ds.PerFrameFunctionalGroupsSequence) == 4
    assert [
        f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for f in ds.PerFrameFunctionalGroupsSequence
    ] == [1, 2, 3, 4]
    np.testing.assert_array_equal(the_one(tmp_path / "out"), volume)


def test_real_part_is_a_volume_of_its_own(tmp_path):
    def halves(frame, index):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, index % 2]
        frame.MRImageFrameTypeSequence[0].ComplexImageComponent = "REAL" if index < 2 else "MAGNITUDE"

    volumes = read(make_enhanced(tmp_path / "e", MR, pixels(), edit=halves)).volumes
    assert {volume.meta["component"] for volume in volumes} == {"real", "magnitude"}
    assert all(volume.shape == (1, 5, 6, 2) for volume in volumes)


def test_frame_types_are_volumes_of_their_own(tmp_path):
    def maps(frame, index):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, index % 2]
        frame.MRImageFrameTypeSequence[0].FrameType = ["DERIVED", "PRIMARY", "T1" if index < 2 else "T2", "NONE"]

    volumes = read(make_enhanced(tmp_path / "e", MR, pixels(), edit=maps)).volumes
    assert [volume.shape for volume in volumes] == [(1, 5, 6, 2)] * 2


def at_times(frame, index):
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * (index % 2)]
    frame.FrameContentSequence[0].TemporalPositionIndex = 1 + index // 2


def test_time_points_within_a_file_and_across_files(tmp_path, provenance):
    one = the_one(make_enhanced(tmp_path / "one" / "e", PT, pixels(), edit=at_times))
    assert one.shape == (2, 5, 6, 2)
    for time in range(3):

        def later(frame, index, time=time):  # noqa: ARG001
            frame.FrameContentSequence[0].TemporalPositionIndex = time + 1

        path = make_enhanced(tmp_path / "many" / str(time), MR, pixels() + time, edit=later)
        ds = pydicom.dcmread(path)
        ds.SOPInstanceUID = f"1.2.3.{time}"
        ds.save_as(path)
    many = the_one(tmp_path / "many")
    assert many.shape == (3, 5, 6, 4)
    np.testing.assert_allclose(many[2] - many[0], 1.0)  # two stored steps of a half
    out = write(many, tmp_path / "out", provenance=provenance)
    assert len(list(out.iterdir())) == 3
    np.testing.assert_array_equal(the_one(out), many)


def test_dimension_indices_tell_apart_what_nothing_else_does(tmp_path):
    def indexed(frame, index):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, index % 2]
        frame.FrameContentSequence[0].DimensionIndexValues = [1, 1 + index % 2, 1 + index // 2]

    path = make_enhanced(tmp_path / "e", MR, pixels(), edit=indexed)
    with pytest.raises(UnsupportedError, match="nothing tells the stacks apart"):
        read(path)
    ds = pydicom.dcmread(path)
    pointers = ("StackID", "InStackPositionNumber", "ContrastBolusAgentPhase")
    ds.DimensionIndexSequence = [pydicom.Dataset() for _ in pointers]
    for item, pointer in zip(ds.DimensionIndexSequence, pointers, strict=True):
        item.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(pointer)
    ds.save_as(path)
    assert the_one(path).shape == (2, 5, 6, 2)


def test_stacks_that_the_file_names_are_volumes_of_their_own(tmp_path):
    def named(frame, index):
        frame.FrameContentSequence[0].StackID = str(1 + index // 2)

    assert len(read(make_enhanced(tmp_path / "e", MR, pixels(), edit=named)).volumes) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NumberOfFrames": 5}, "header is damaged|too short"),
        ({"NumberOfFrames": 2_000_000_000}, "too short"),
        ({"NumberOfFrames": 0}, "header is damaged|too short"),
        ({"PerFrameFunctionalGroupsSequence": []}, "says nothing of its frames"),
        ({"SharedFunctionalGroupsSequence": []}, r"Image Orientation \(Patient\) is missing"),
    ],
)
def test_files_whose_groups_do_not_fit_are_refused(tmp_path, change, words):
    path = make_enhanced(tmp_path / "e", MR, pixels())
    ds = pydicom.dcmread(path)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    ds.save_as(path)
    with pytest.raises(UnsupportedError, match=words):
        read(path)


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_sd_map_lies_on_the_frames(tmp_path, provenance, sop_class):
    volume = the_one(make_enhanced(tmp_path / "e", sop_class, pixels()))
    path = write_sd_map(regridded(volume, volume * 0 + 2, volume.affine), tmp_path / "sd.dcm", provenance=provenance)
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    assert sorted(float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in frames) == [5, 8, 11, 14]


def test_suv_of_enhanced_pet_counts_from_the_moment_it_names(tmp_path):
    path = make_enhanced(tmp_path / "e", PT, pixels())
    ds = pydicom.dcmread(path)
    ds.DecayCorrected, ds.DecayCorrectionDateTime = "YES", "20200102100000"
    ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = "20200102090000"
    ds.save_as(path)
    factor = the_one(path).meta["suv"]["factor"]
    assert factor == pytest.approx(70_000 / (3.5e8 * 2 ** (-3600 / 6586.2)))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools (dciodvfy) is not installed")
@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_derived_file_breaks_no_rule_that_its_source_keeps(tmp_path, provenance, sop_class):
    path = make_enhanced(tmp_path / "e", sop_class, pixels())
    written(the_one(path), tmp_path, provenance)

    def errors(file: Path) -> set[str]:
        done = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, errors="replace", check=False)
        return {line for line in done.stderr.splitlines() if line.startswith("Error")}

    assert errors(tmp_path / "out" / "00001.dcm") <= errors(path)


def test_private_attributes_are_dropped_but_for_the_allowed(tmp_path, provenance):
    def secret(frame, index):  # noqa: ARG001
        frame.FrameContentSequence[0].private_block(0x2005, "ACME", create=True).add_new(1, "LO", "secret")

    path = make_enhanced(tmp_path / "e", MR, pixels(), edit=secret)
    ds = pydicom.dcmread(path)
    ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.5)
    ds.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "secret")
    ds.save_as(path)
    out = written(the_one(path), tmp_path, provenance)
    private = [element for element in out.iterall() if element.tag.is_private]
    assert [str(element.value) for element in private] == ["Philips MR Imaging DD 001", "0.5"]


def test_the_same_run_writes_the_same_uids(tmp_path, provenance):
    volume = the_one(make_enhanced(tmp_path / "e", MR, pixels()))
    first, second = (written(volume, tmp_path / name, provenance) for name in ("a", "b"))
    assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (second.SOPInstanceUID, second.SeriesInstanceUID)
    other = Provenance("toy", "other", "poisson", {}, "0.1.0")
    assert written(volume, tmp_path / "c", other).SOPInstanceUID != first.SOPInstanceUID
