"""Nuclear medicine: every kind of image in and out, what its third axis counts, and where values are raw counts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_nuclear import KINDS, counts, item_of, make_nuclear
from made_scans import SECRETS, regridded
from pydicom.dataset import Dataset

from n2s_med.errors import OutputError, UnsupportedError
from n2s_med.volumes import read, write, write_sd_map

SHAPES = {  # (C, Z), third axis, whether the values are raw counts
    "STATIC": (4, 1, "none", True),
    "WHOLE BODY": (2, 1, "none", True),
    "DYNAMIC": (2, 6, "time", True),
    "GATED": (1, 8, "time", True),
    "TOMO": (2, 5, "angle", True),
    "GATED TOMO": (3, 4, "angle", True),
    "RECON TOMO": (1, 7, "space", False),
    "RECON GATED TOMO": (2, 7, "space", False),
}


def the_one(path: Path):
    (volume,) = read(path).volumes
    return volume


def errors(path: Path) -> set[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_fill_the_volume_in_the_order_of_their_indices(tmp_path, kind):
    volume = the_one(make_nuclear(tmp_path / "nm", kind))
    c, z, axis, raw = SHAPES[kind]
    assert volume.shape == (c, 10, 8, z)
    assert (volume.meta["modality"], volume.meta["third_axis"], volume.meta["counts"]) == ("nm", axis, raw)
    assert volume.meta["units"] == ("CNTS" if raw else "arbitrary")
    np.testing.assert_array_equal(
        volume.permute(0, 3, 2, 1).reshape(c * z, 8, 10), counts(kind).astype(np.float32)
    )  # the made frames run through the fastest index last
    assert len(volume.meta["stacks"]) == c
    assert not any(secret in volume.meta["label"] for secret in SECRETS)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_frames_are_put_where_they_belong(tmp_path, kind):
    frames = len(counts(kind))
    order = np.random.default_rng(1).permutation(frames)

    def shuffle(ds, index):  # noqa: ARG001
        for keyword in KINDS[kind]:
            setattr(ds, keyword, [ds[keyword].value[n] for n in order] if frames > 1 else ds[keyword].value)

    plain = the_one(make_nuclear(tmp_path / "plain", kind))
    mixed = the_one(make_nuclear(tmp_path / "mixed", kind, counts(kind)[order], edit=shuffle))
    np.testing.assert_array_equal(mixed, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_comes_back_bit_for_bit(tmp_path, provenance, kind):
    path = make_nuclear(tmp_path / "nm", kind)
    volume = the_one(path)
    (out,) = write(volume, tmp_path / "out", provenance=provenance).iterdir()
    again, source, ds = the_one(out), pydicom.dcmread(path), pydicom.dcmread(out)
    np.testing.assert_array_equal(again, volume)
    np.testing.assert_allclose(again.affine, volume.affine)
    np.testing.assert_array_equal(ds.pixel_array, source.pixel_array)
    assert ds.ImageType == ["DERIVED", "PRIMARY", kind, "EMISSION"]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert not again.meta["counts"]  # denoised values are no events any more


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools (dciodvfy) is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_made_objects_keep_the_rules_and_so_do_derived_ones(tmp_path, provenance, kind):
    path = make_nuclear(tmp_path / "nm", kind)
    assert errors(path) == set()
    (out,) = write(the_one(path) * 0.9, tmp_path / "out", provenance=provenance).iterdir()
    assert errors(out) == set()


@pytest.mark.skipif(shutil.which("dcentvfy") is None, reason="dicom3tools (dcentvfy) is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_derived_objects_agree_with_their_study(tmp_path, provenance, kind):
    path = make_nuclear(tmp_path / "nm", kind)
    (out,) = write(the_one(path) * 0.9, tmp_path / "out", provenance=provenance).iterdir()
    done = subprocess.run(["dcentvfy", path, out], capture_output=True, text=True, errors="replace", check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("spacing", "lowest"), [("4", 30.0), ("-4", 30.0 - 6 * 4)])
def test_slices_are_stacked_along_the_normal_or_against_it(tmp_path, spacing, lowest):
    def stacked(ds, index):  # noqa: ARG001
        ds.SpacingBetweenSlices = spacing

    volume = the_one(make_nuclear(tmp_path / "nm", "RECON TOMO", edit=stacked))
    assert float(volume.affine[2, 3]) == lowest
    assert volume.meta["spacing_mm"] == (4.0, 4.0, 4.0)
    first = counts("RECON TOMO")[0 if spacing == "4" else 6]
    np.testing.assert_array_equal(volume[0, :, :, 0], first.T.astype(np.float32))


def test_phases_of_a_dynamic_study_follow_each_other(tmp_path):
    def two_phases(ds, index):  # noqa: ARG001
        ds.PhaseVector, ds.TimeSliceVector = [1, 1, 1, 1, 2, 2] * 2, [1, 2, 3, 4, 1, 2] * 2
        ds.NumberOfPhases = 2
        ds.PhaseInformationSequence = [item_of(ActualFrameDuration="500"), item_of(ActualFrameDuration="9000")]

    volume = the_one(make_nuclear(tmp_path / "nm", "DYNAMIC", edit=two_phases))
    assert volume.shape == (2, 10, 8, 6)
    assert volume.meta["durations_s"] == (0.5, 0.5)


def scaled(ds: Dataset, index: int) -> None:  # noqa: ARG001
    ds.RescaleSlope, ds.RescaleIntercept = "0.5", "0"


def attenuated(ds: Dataset, index: int) -> None:  # noqa: ARG001
    ds.CorrectedImage = ["UNIF", "ATTN"]


def uniform(ds: Dataset, index: int) -> None:  # noqa: ARG001
    ds.CorrectedImage = ["UNIF", "NRGY"]


def summed(ds: Dataset, index: int) -> None:  # noqa: ARG001
    ds.ImageType = ["DERIVED", "PRIMARY", "STATIC", "EMISSION"]


@pytest.mark.parametrize(("edit", "raw"), [(scaled, False), (attenuated, False), (summed, False), (uniform, True)])
def test_scaled_values_are_no_counts(tmp_path, edit, raw):
    assert the_one(make_nuclear(tmp_path / "nm", "STATIC", edit=edit)).meta["counts"] is raw


def nowhere(ds: Dataset, index: int) -> None:  # noqa: ARG001
    del ds.DetectorInformationSequence
    ds.PixelSpacing = None


def test_what_has_no_place_is_read_and_said(tmp_path, provenance):
    volume = the_one(make_nuclear(tmp_path / "nm", "TOMO", edit=nowhere))
    assert "does not say where it lies" in volume.meta["notes"][-1]
    assert volume.meta["spacing_mm"] == (1.0, 1.0, 1.0)
    (out,) = write(volume, tmp_path / "out", provenance=provenance).iterdir()
    assert "DetectorInformationSequence" not in pydicom.dcmread(out)  # nothing is invented


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda ds, _: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "SOMETHING"]), "kind of nuclear medicine"),
        (lambda ds, _: setattr(ds, "TimeSlotVector", [1, 2]), "does not say for each frame"),
        (lambda ds, _: [delattr(ds, keyword) for keyword in KINDS["GATED"]], "does not say for each frame"),
        (lambda ds, _: setattr(ds, "TimeSlotVector", [1] * 8), "nothing tells the stacks apart"),
        (lambda ds, _: setattr(ds, "NumberOfFrames", 2**31 - 1), "does not say for each frame|too short"),
    ],
)
def test_frames_that_cannot_be_told_are_refused(tmp_path, edit, words):
    with pytest.raises(UnsupportedError, match=words):
        read(make_nuclear(tmp_path / "nm", "GATED", edit=edit))


def test_views_in_a_file_each_are_not_mixed(tmp_path):
    for view in range(3):

        def single(ds, index, view=view):  # noqa: ARG001
            ds.SOPInstanceUID = f"1.2.3.{view}"

        make_nuclear(tmp_path / "in" / str(view), "WHOLE BODY", edit=single)
    assert [volume.shape for volume in read(tmp_path / "in").volumes] == [(2, 10, 8, 1)] * 3


def test_sd_map_of_projections_has_a_frame_of_reference_of_its_own(tmp_path, provenance):
    def without(ds, index):  # noqa: ARG001
        del ds.FrameOfReferenceUID

    volume = the_one(make_nuclear(tmp_path / "nm", "GATED", edit=without))
    path = write_sd_map(volume * 0 + 1, tmp_path / "sd.dcm", provenance=provenance)
    ds = pydicom.dcmread(path)
    assert ds.NumberOfFrames == 8
    assert shutil.which("dciodvfy") is None or errors(path) == set()
    assert ds.FrameOfReferenceUID


def test_a_part_of_an_object_is_not_written_as_the_whole(tmp_path, provenance):
    volume = the_one(make_nuclear(tmp_path / "nm", "RECON TOMO"))
    part = regridded(volume, volume[..., :4], volume.affine)
    part.meta["source"], part.meta["source_frames"] = volume.meta["source"][:4], volume.meta["source_frames"][:4]
    with pytest.raises(OutputError, match="not all frames"):
        write(part, tmp_path / "out", provenance=provenance)
    assert not (tmp_path / "out").exists()
