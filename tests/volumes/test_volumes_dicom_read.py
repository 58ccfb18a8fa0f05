"""DICOM in: order, rescale, padding, geometry, and every refusal with its reason."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_scans import CT, MR, PT, SECRETS, make_series, make_slice, pixels, put_pixels, save
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from n2s_med.errors import InputError, UnsupportedError
from n2s_med.volumes import read, survey, valid_mask, write


def reason(folder: Path) -> str:
    """Return why nothing in ``folder`` is read."""
    with pytest.raises(UnsupportedError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in SECRETS)
    return message


def test_slices_are_ordered_by_position_not_by_name_or_number(tmp_path):
    stored = pixels()

    def shuffle_numbers(ds, index):
        ds.InstanceNumber = (index * 3) % 4 + 1

    (volume,) = read(make_series(tmp_path / "s", stored=stored, edit=shuffle_numbers)).volumes
    assert volume.shape == (1, 5, 6, 4)
    assert str(volume.dtype) == "torch.float32"
    np.testing.assert_array_equal(volume[0].numpy(), stored.transpose(2, 1, 0) - 1024.0)


def test_geometry_is_ras_millimetres(tmp_path):
    (volume,) = read(make_series(tmp_path / "s")).volumes
    expected = [[-1.5, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine.numpy(), expected)
    assert str(volume.affine.dtype) == "torch.float64"
    assert volume.meta["spacing_mm"] == (1.5, 2.0, 3.0)


def test_meta_says_what_it_is_without_patient_data(tmp_path):
    (volume,) = read(make_series(tmp_path / "s", PT)).volumes
    meta = volume.meta
    assert (meta["format"], meta["modality"], meta["units"]) == ("dicom", "pet", "BQML")
    assert meta["label"] == "PT series 4, 4 slices of 5x6"
    assert [Path(name).name for name in meta["source"]] == [f"one-{n:03d}" for n in (4, 3, 2, 1)]
    assert not any(secret in str(value) for key, value in meta.items() if key != "source" for secret in SECRETS)


def test_slope_and_intercept_are_those_of_each_slice(tmp_path):
    stored = pixels()
    stored[0] = 0  # an empty first slice decides nothing
    (volume,) = read(make_series(tmp_path / "s", PT, stored=stored)).volumes
    for z in range(4):
        expected = stored[z].T * (0.1 + 0.05 * z)
        np.testing.assert_allclose(volume[0, :, :, z].numpy(), expected, rtol=1e-6)


def test_padding_is_masked(tmp_path):
    stored = pixels(low=-100)
    stored[:, :2] = -2000
    stored[:, 2, 0] = -1990

    def pad(ds, index):  # noqa: ARG001
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.add_new("PixelPaddingRangeLimit", "SS", -1990)

    (volume,) = read(make_series(tmp_path / "s", stored=stored, edit=pad)).volumes
    mask = valid_mask(volume)
    assert mask.shape == volume.shape
    np.testing.assert_array_equal(mask[0].numpy(), (stored > -1990).transpose(2, 1, 0))


def test_padding_stated_as_the_unsigned_twin_is_understood(tmp_path):
    stored = pixels()
    stored[:, 0] = -2000

    def pad(ds, index):  # noqa: ARG001
        ds.add_new("PixelPaddingValue", "US", 65536 - 2000)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = make_series(tmp_path / "s", stored=stored, edit=pad)
    assert int((~valid_mask(read(folder).volumes[0])).sum()) == 4 * 5


def test_all_padding_is_refused(tmp_path):
    folder = make_series(
        tmp_path / "s",
        stored=np.full((4, 6, 5), -2000, "i2"),
        edit=lambda ds, _: ds.add_new("PixelPaddingValue", "SS", -2000),
    )
    assert "every pixel is padding" in reason(folder)


def test_volume_without_padding_is_valid_everywhere(tmp_path):
    (volume,) = read(make_series(tmp_path / "s")).volumes
    assert valid_mask(volume).all()
    assert volume.as_tensor().movedim(-1, 1).is_contiguous()  # each plane in one piece


def test_monochrome1_is_not_inverted(tmp_path):
    def inverse(ds, index):  # noqa: ARG001
        ds.PhotometricInterpretation = "MONOCHROME1"

    plain = read(make_series(tmp_path / "a")).volumes[0]
    other = read(make_series(tmp_path / "b", edit=inverse)).volumes[0]
    assert bool((plain == other).all())


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE",
        "MR_small_bigendian",
        "MR_small_implicit",
        "MR_small_padded",
        "MR_small_jp2klossless",
        "MR_small_jpeg_ls_lossless",
        "MR_small_expb",
    ],
)
def test_transfer_syntaxes_decode_to_the_same_pixels(name):
    plain = read(get_testdata_file("MR_small.dcm")).volumes[0]
    other = read(get_testdata_file(f"{name}.dcm")).volumes[0]
    assert bool((plain == other).all())
    np.testing.assert_allclose(plain.affine, other.affine)


def test_pixels_that_cannot_be_decoded_refuse_their_series_alone(tmp_path):
    make_series(tmp_path / "good")
    shutil.copy(get_testdata_file("MR_truncated.dcm"), tmp_path / "bad")
    contents = read(tmp_path)
    assert len(contents.volumes) == 1
    (refusal,) = contents.refusals
    assert "cannot be decoded" in refusal.reason
    assert refusal.path == tmp_path / "bad"


def test_files_without_preamble_or_without_file_meta_are_found(tmp_path):
    source = Path(get_testdata_file("MR_small.dcm"))
    plain = read(source).volumes[0]
    (tmp_path / "no_preamble").write_bytes(source.read_bytes()[132:])
    bare = strip_meta(pydicom.dcmread(source))
    pydicom.dcmwrite(tmp_path / "implicit", bare, implicit_vr=True, little_endian=True)
    pydicom.dcmwrite(tmp_path / "explicit", bare, implicit_vr=False, little_endian=True)
    for name in ("no_preamble", "implicit", "explicit"):
        assert bool((read(tmp_path / name).volumes[0] == plain).all())


def strip_meta(ds: Dataset) -> Dataset:
    bare = Dataset()
    bare.update({element.tag: element for element in ds})
    return bare


def test_dicomdir_and_other_files_are_passed_over(tmp_path):
    make_series(tmp_path / "s")
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "s" / "DICOMDIR")
    (tmp_path / "s" / "notes.txt").write_text("nothing here")
    (tmp_path / "s" / ".hidden").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "s" / "empty").touch()
    contents = read(tmp_path)
    assert len(contents.volumes) == 1
    assert contents.refusals == ()


def test_one_file_is_a_series_of_one_slice():
    (volume,) = read(get_testdata_file("CT_small.dcm")).volumes
    assert volume.shape == (1, 128, 128, 1)
    assert volume.meta["spacing_mm"][2] == pytest.approx(5.0)
    assert volume.meta["label"] == "CT series 1, 1 slice of 128x128"


def test_series_are_told_apart(tmp_path):
    make_series(tmp_path, study="one")
    make_series(tmp_path, MR, study="two")
    assert sorted(v.meta["modality"] for v in read(tmp_path).volumes) == ["ct", "mr"]


def test_series_of_two_studies_with_one_uid_are_told_apart(tmp_path):
    """As anonymisers leave them that give every series the same UID."""
    first, second = (make_series(tmp_path / name, stored=pixels() + n) for n, name in enumerate("ab"))
    for path in second.iterdir():
        ds = pydicom.dcmread(path)
        ds.StudyInstanceUID = "1.2.3"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        ds.save_as(path)
    a, b = read(tmp_path).volumes
    assert a.shape == b.shape == (1, 5, 6, 4)
    assert {Path(name).parent for name in a.meta["source"]} == {first}
    assert bool((b - a == 1).all())


def test_deflated_pixels_are_the_same(tmp_path):
    source = make_series(tmp_path / "a")
    for path in source.iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        (tmp_path / "b").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "b" / path.name)
    plain, other = (read(tmp_path / name).volumes[0] for name in "ab")
    assert bool((plain == other).all())


def test_what_is_for_looking_does_not_change_values(tmp_path):
    def looks(ds, index):  # noqa: ARG001
        ds.WindowCenter, ds.WindowWidth, ds.PresentationLUTShape = "40", "80", "INVERSE"
        world, table = Dataset(), Dataset()
        world.RealWorldValueSlope, world.RealWorldValueIntercept = 7.0, -3.0
        world.RealWorldValueFirstValueMapped, world.RealWorldValueLastValueMapped = 0, 4095
        table.LUTDescriptor = [2, 0, 16]
        table.add_new("LUTData", "OW", b"\5\0\6\0")
        ds.RealWorldValueMappingSequence, ds.VOILUTSequence = [world], [table]

    for sop_class in (CT, MR, PT):
        plain = read(make_series(tmp_path / f"a{sop_class}", sop_class)).volumes[0]
        other = read(make_series(tmp_path / f"b{sop_class}", sop_class, edit=looks)).volumes[0]
        assert bool((plain == other).all())


def test_an_empty_first_slice_of_pet_does_not_set_the_type_of_the_others(tmp_path):
    def empty(ds, index):
        if index == 0:
            ds.PixelData, ds.RescaleSlope = bytes(len(ds.PixelData)), "1"

    plain = read(make_series(tmp_path / "a", PT)).volumes[0]
    other = read(make_series(tmp_path / "b", PT, edit=empty)).volumes[0]
    assert not other[..., 0].any()
    assert bool((other[..., 1:] == plain[..., 1:]).all())


def test_acquisition_number_does_not_split(tmp_path):
    def other_acquisition(ds, index):
        ds.AcquisitionNumber = index // 2

    assert len(read(make_series(tmp_path / "s", edit=other_acquisition)).volumes) == 1


def set_all(**values):
    return lambda ds, _: [setattr(ds, name, value) for name, value in values.items()]


def colour(ds, index):  # noqa: ARG001
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData = bytes(ds.Rows * ds.Columns * 6)


def modality_lut(ds, index):  # noqa: ARG001
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [2, 0, 16], "US"
    item.add_new("LUTData", "OW", b"\0\0\1\0")
    ds.ModalityLUTSequence = [item]


def ge_phase(ds, index):  # noqa: ARG001
    ds.private_block(0x43, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 1)


@pytest.mark.parametrize(
    ("sop_class", "edit", "words"),
    [
        (CT, set_all(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (CT, set_all(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "picture of a screen"),
        (MR, set_all(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic"),
        (MR, set_all(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "phase"),
        (MR, ge_phase, "phase"),
        (CT, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary capture"),
        (CT, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"), "says nothing of its frames"),
        (MR, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1"), "says nothing of its frames"),
        (CT, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"), "radiotherapy"),
        (CT, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22"), "report"),
        (CT, set_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.1"), "not a CT, MR, PET, NM or US image"),
        (CT, set_all(SOPClassUID="1.2.3.4"), "its kind of object"),
        (CT, colour, "colour"),
        (CT, set_all(NumberOfFrames=2), "several frames"),
        (CT, modality_lut, "lookup table"),
        (CT, set_all(BitsAllocated=32), "integers of 8 or 16 bits"),
        (CT, set_all(BitsStored=17), "Bits Stored"),
        (CT, set_all(Rows=0), "no pixels"),
        (CT, set_all(RescaleSlope="0"), "Rescale Slope is zero"),
        (MR, set_all(RescaleSlope="1e308"), "too large"),
        (PT, set_all(RescaleSlope=None), "activity cannot be known"),
        (CT, set_all(ImagePositionPatient=None), "Image Position (Patient) is missing"),
        (CT, set_all(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "perpendicular"),
        (CT, set_all(PixelSpacing=[0, 1]), "not positive"),
        (CT, set_all(PixelSpacing=[1, 1, 1]), "header is damaged"),
    ],
)  # fmt: skip
def test_what_is_no_volume_is_refused_with_its_reason(tmp_path, sop_class, edit, words):
    assert words in reason(make_series(tmp_path / "s", sop_class, edit=edit))


def test_a_localizer_of_the_same_series_is_left_out(tmp_path):
    folder = make_series(tmp_path / "s")
    view = pydicom.dcmread(next(folder.iterdir()))
    view.SOPInstanceUID = view.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    view.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    view.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    view.save_as(folder / "view")
    contents = read(folder)
    assert [volume.shape for volume in contents.volumes] == [(1, 5, 6, 4)]
    assert [refusal.path for refusal in contents.refusals] == [folder / "view"]


def test_a_missing_slice_leaves_two_runs_each_where_it_was(tmp_path):
    stored = pixels((7, 6, 5))
    folder = make_series(tmp_path / "s", stored=stored)
    (folder / "one-005").unlink()  # the third one
    runs = read(folder).volumes
    assert [volume.meta["label"] for volume in runs] == [
        "CT series 4, slices 1 to 2 of 6, of 5x6",
        "CT series 4, slices 3 to 6 of 6, of 5x6",
    ]
    for volume, first in zip(runs, (0, 3), strict=True):
        assert float(volume.affine[2, 3]) == 5 + 3 * first
        assert volume.meta["spacing_mm"][2] == pytest.approx(3)
        np.testing.assert_array_equal(volume[0, :, :, 0], stored[first].T - 1024.0)
        assert "unevenly spaced" in volume.meta["notes"][0]


def test_a_change_of_spacing_leaves_two_runs(tmp_path):
    def thicker(ds, index):
        ds.ImagePositionPatient = [-10, -20, [0, 1, 2, 3, 8, 13, 18][index]]

    runs = read(make_series(tmp_path / "s", stored=pixels((7, 6, 5)), edit=thicker)).volumes
    assert [(volume.shape[3], volume.meta["spacing_mm"][2]) for volume in runs] == [(4, 1), (3, 5)]


def test_slices_scattered_at_random_are_refused(tmp_path):
    def scatter(ds, index):
        ds.ImagePositionPatient = [-10, -20, 3 * index * index]

    assert "unevenly spaced (3.00 to 15.00 mm)" in reason(make_series(tmp_path / "s", edit=scatter))


def test_gantry_tilt_is_kept_in_the_affine_and_said(tmp_path):
    def shear(ds, index):
        ds.ImagePositionPatient = [-10, -20 + index, 5 + 3 * index]

    stored = pixels()
    (volume,) = read(make_series(tmp_path / "s", stored=stored, edit=shear)).volumes
    np.testing.assert_allclose(volume.affine[:3, 2], [0, -1, 3])
    assert "tilted by 18.4 degrees" in volume.meta["notes"][0]
    np.testing.assert_array_equal(volume[0], stored.transpose(2, 1, 0) - 1024.0)  # nothing was resampled


def test_a_bent_stack_is_refused(tmp_path):
    def bend(ds, index):
        ds.ImagePositionPatient = [-10 + (index in (1, 2)), -20, 5 + 3 * index]

    assert "straight, even grid" in reason(make_series(tmp_path / "s", edit=bend))


def test_table_jitter_is_accepted(tmp_path):
    def jitter(ds, index):
        ds.ImagePositionPatient = [-10, -20, 3.27 * index + (0.04 if index == 2 else 0)]

    assert len(read(make_series(tmp_path / "s", PT, edit=jitter)).volumes) == 1


def test_identical_copies_are_dropped_and_different_ones_refused(tmp_path):
    folder = make_series(tmp_path / "s")
    shutil.copy(folder / "one-002", folder / "copy")
    assert read(folder).volumes[0].shape == (1, 5, 6, 4)
    again = make_slice(CT, pixels()[0] + 1, 2, step=3.0, study="one")
    again.SOPInstanceUID = "1.2.3.4.5"
    save(again, folder / "different")
    assert "nothing tells the stacks apart" in reason(folder)


def two_times(tmp_path: Path, sop_class: str, **differences: tuple[object, object]) -> Path:
    for time in range(2):

        def edit(ds, index, time=time):
            ds.SOPInstanceUID = f"1.2.3.{time}.{index}"
            ds.InstanceNumber = 1 + index + 4 * time
            for name, values in differences.items():
                setattr(ds, name, values[time])

        folder = make_series(tmp_path / f"t{time}", sop_class, stored=pixels() + 100 * time, edit=edit)
    return folder.parent


@pytest.mark.parametrize(
    ("sop_class", "differences"),
    [
        (PT, {"FrameReferenceTime": ("9000", "10000")}),
        (MR, {"EchoTime": ("2.5", "5.0")}),
        (MR, {"TemporalPositionIdentifier": (1, 2), "TriggerTime": ("1", "2")}),
        (MR, {"DiffusionBValue": (0.0, 1000.0)}),
        (MR, {"NumberOfTemporalPositions": (2, 2)}),
    ],
)
def test_stacks_at_the_same_positions_become_one_volume_each(tmp_path, sop_class, differences):
    (volume,) = read(two_times(tmp_path, sop_class, **differences)).volumes
    assert volume.shape == (2, 5, 6, 4)
    stored = pixels().transpose(2, 1, 0)
    slope = 1.0 if sop_class == MR else 0.1
    np.testing.assert_allclose(volume[:, :, :, 0], np.stack([stored, stored + 100])[..., 0] * slope, rtol=1e-6)
    assert volume.meta["label"].endswith("2 volumes of 4 slices of 5x6")
    assert len(volume.meta["source"]) == 8


def stacks_of(tmp_path: Path, sop_class: str, count: int, edit) -> Path:
    """Write ``count`` stacks at the same positions; ``edit(ds, stack)`` tells them apart."""
    for stack in range(count):

        def each(ds, index, stack=stack):
            ds.SOPInstanceUID = f"1.2.3.{stack}.{index}"
            edit(ds, stack)

        make_series(tmp_path / "in" / str(stack), sop_class, stored=pixels() + 100 * stack, edit=each)
    return tmp_path / "in"


def test_stacks_are_named_by_what_tells_them_apart(tmp_path):
    def weighted(ds, stack):
        ds.DiffusionBValue = [0.0, 1000.0, 1000.0][stack]
        if stack:
            ds.DiffusionGradientOrientation = [[], [1, 0, 0], [0, 1, 0]][stack]

    (volume,) = read(stacks_of(tmp_path, MR, 3, weighted)).volumes
    assert volume.meta["stacks"] == ("b-value 0", "b-value 1000", "b-value 1000")


def test_dynamic_pet_says_how_long_each_frame_took(tmp_path):
    def frame(ds, stack):
        ds.FrameReferenceTime, ds.ActualFrameDuration = str(5000 + 10000 * stack), str([10_000, 60_000][stack])

    (volume,) = read(stacks_of(tmp_path, PT, 2, frame)).volumes
    assert volume.meta["durations_s"] == (10.0, 60.0)
    assert volume.meta["stacks"] == ("frame reference time 5000", "frame reference time 15000")


def test_gates_of_pet_are_volumes(tmp_path):
    def gate(ds, stack):
        ds.TriggerTime = str(100 * stack)

    (volume,) = read(stacks_of(tmp_path, PT, 4, gate)).volumes
    assert volume.shape == (4, 5, 6, 4)
    assert volume.meta["stacks"][3] == "trigger time 300"


def test_an_image_and_the_map_made_of_it_are_volumes_of_their_own(tmp_path):
    def kinds(ds, stack):
        ds.ImageType = ["DERIVED", "PRIMARY", ["M", "T2 MAP"][stack]]

    volumes = read(stacks_of(tmp_path, MR, 2, kinds)).volumes
    assert [volume.shape for volume in volumes] == [(1, 5, 6, 4)] * 2


def test_magnitude_real_and_phase_of_two_echoes(tmp_path):
    def parts(ds, stack):
        ds.EchoTime = str(3 + stack % 2)
        ds.ImageType = ["ORIGINAL", "PRIMARY", ["M", "REAL", "P"][stack // 2]]

    contents = read(stacks_of(tmp_path, MR, 6, parts))
    assert {volume.meta["component"]: volume.shape for volume in contents.volumes} == {
        "magnitude": (2, 5, 6, 4),
        "real": (2, 5, 6, 4),
    }
    assert all("phase" in refusal.reason for refusal in contents.refusals)


def test_acquisitions_are_time_points_of_mr_and_never_of_ct(tmp_path):
    def acquired(ds, stack):
        ds.AcquisitionNumber = stack + 1

    assert read(stacks_of(tmp_path / "mr", MR, 2, acquired)).volumes[0].shape == (2, 5, 6, 4)
    assert "nothing tells the stacks apart" in reason(stacks_of(tmp_path / "ct", CT, 2, acquired))


def ultrasound(ds, index):  # noqa: ARG001
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del ds[keyword]
    ds.SOPClassUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.6.1", "US"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
    put_pixels(ds, pixels((1, 6, 5), high=255, kind="u1")[0])
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    ds.SequenceOfUltrasoundRegions = [region]


def test_grey_ultrasound_is_images_with_the_pixel_size_of_their_region(tmp_path, provenance):
    first, second = read(make_series(tmp_path / "s", stored=pixels((2, 6, 5)), edit=ultrasound)).volumes
    assert (first.shape, first.meta["modality"], first.meta["third_axis"]) == ((1, 5, 6, 1), "us", "none")
    assert first.meta["spacing_mm"][:2] == pytest.approx((0.2, 0.3))
    again = read(write(second, tmp_path / "out", provenance=provenance)).volumes[0]
    np.testing.assert_array_equal(again, second)


def test_ultrasound_without_a_scale_is_said(tmp_path):
    def bare(ds, index):
        ultrasound(ds, index)
        del ds.SequenceOfUltrasoundRegions

    (volume,) = read(make_series(tmp_path / "s", stored=pixels((1, 6, 5)), edit=bare)).volumes
    assert "how large its pixels are" in volume.meta["notes"][0]


def test_stacks_that_nothing_tells_apart_are_refused(tmp_path):
    assert "nothing tells the stacks apart" in reason(two_times(tmp_path, MR))


def test_unfinished_time_point_is_refused(tmp_path):
    folder = two_times(tmp_path, PT, FrameReferenceTime=("9000", "10000"))
    (folder / "t1" / "one-001").unlink()
    assert "nothing tells the stacks apart" in reason(folder)


def test_suv_factor_and_what_is_missing(tmp_path):
    suv = read(make_series(tmp_path / "a", PT)).volumes[0].meta["suv"]
    dose_at_scan = 3.5e8 * 2 ** (-3600 / 6586.2)
    assert suv["factor"] == pytest.approx(70_000 / dose_at_scan)
    assert suv["missing"] == ()

    def lose(ds, index):  # noqa: ARG001
        del ds.PatientWeight
        del ds.RadiopharmaceuticalInformationSequence

    suv = read(make_series(tmp_path / "b", PT, edit=lose)).volumes[0].meta["suv"]
    assert suv["factor"] is None
    assert suv["missing"] == ("patient weight", "injected dose", "half-life", "injection time")


def start_datetime(value):
    def edit(ds, index):  # noqa: ARG001
        ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime = value

    return edit


@pytest.mark.parametrize(
    ("edit", "factor", "missing"),
    [
        (set_all(Units="GML"), 1.0, ()),
        (set_all(Units="GML", SUVType="LBM"), None, ("SUV by body weight (it is by another measure)",)),
        (set_all(Units="CNTS"), None, ("activity units (it holds counts)",)),
        (set_all(Units="PROPCPS"), None, ("activity units",)),
        (set_all(DecayCorrection="NONE"), None, ("decay correction",)),
        (set_all(DecayCorrection="ADMIN"), 70_000 / 3.5e8, ()),
        (set_all(SeriesTime="120000"), None, ("scan start time",)),
        (set_all(AcquisitionDateTime="20200102100100"), 70_000 / (3.5e8 * 2 ** (-3600 / 6586.2)), ()),
        (start_datetime("20200102093000"), 70_000 / (3.5e8 * 2 ** (-1800 / 6586.2)), ()),
        (start_datetime("20200103093000"), None, ("an injection before the scan",)),
        (set_all(PatientWeight="-1"), None, ("patient weight",)),
    ],
)
def test_suv_follows_units_and_decay_correction(tmp_path, edit, factor, missing):
    suv = read(make_series(tmp_path / "s", PT, edit=edit)).volumes[0].meta["suv"]
    assert suv["factor"] == (pytest.approx(factor) if factor else None)
    assert suv["missing"] == missing


def test_injection_late_in_the_evening_before(tmp_path):
    def overnight(ds, index):  # noqa: ARG001
        ds.SeriesTime, ds.AcquisitionTime = "003000", "003100"
        ds.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "233000"

    suv = read(make_series(tmp_path / "s", PT, edit=overnight)).volumes[0].meta["suv"]
    assert suv["factor"] == pytest.approx(70_000 / (3.5e8 * 2 ** (-3600 / 6586.2)))


def test_units_of_ct_without_rescale_are_unknown(tmp_path):
    def bare(ds, index):  # noqa: ARG001
        del ds.RescaleSlope
        del ds.RescaleIntercept

    assert read(make_series(tmp_path / "s", edit=bare)).volumes[0].meta["units"] == "unknown"


@pytest.mark.parametrize("slope", ["0.5", "1"])
def test_a_slice_without_rescale_among_scaled_ones_is_refused(tmp_path, slope):
    def one_bare(ds, index):
        if index != 2:
            ds.RescaleSlope, ds.RescaleIntercept = slope, "0"

    folder = make_series(tmp_path / "s", MR, edit=one_bare)
    if slope == "1":
        assert read(folder).volumes[0].shape[-1] == 4
    else:
        with pytest.raises(UnsupportedError, match="only some of its slices say how their values are scaled"):
            read(folder)


def test_bits_beyond_bits_stored_are_not_values(tmp_path):
    def twelve_bits(ds, index):
        put_pixels(ds, (pixels(kind="u2")[index] & 0xFFF) | 0x7000)
        ds.BitsStored, ds.HighBit = 12, 11

    volume = read(make_series(tmp_path / "s", MR, edit=twelve_bits)).volumes[0]
    np.testing.assert_array_equal(volume[0].numpy(), (pixels(kind="u2") & 0xFFF).transpose(2, 1, 0))


def test_missing_path_and_folder_without_images(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no NIfTI image and no DICOM"):
        read(tmp_path)
    with pytest.raises(InputError):
        read("name\0with-null")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="neither NIfTI nor DICOM"):
        read(tmp_path / "text")


def test_survey_finds_without_decoding_and_loads_one_by_one(tmp_path):
    make_series(tmp_path / "good")
    shutil.copy(get_testdata_file("MR_truncated.dcm"), tmp_path / "bad")
    sources = {source.label: source for source in survey(tmp_path).sources}
    assert sources.keys() == {"CT series 4, 4 slices of 5x6", "MR series 1, 1 slice of 64x64"}
    good, bad = (sources[label] for label in sorted(sources))
    assert good.path == tmp_path / "good"
    assert good.load().shape == (1, 5, 6, 4)
    with pytest.raises(InputError, match="cannot be decoded"):
        bad.load()


@pytest.mark.parametrize(
    ("manufacturer", "vendor"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("Siemens HealthCare GmbH", "Siemens"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("IMAGE MEDICAL", "other"),
        (SECRETS[3], "other"),
        (None, "other"),
    ],
)
def test_vendor_is_one_that_is_known(tmp_path, manufacturer, vendor):
    folder = make_series(tmp_path / "s", edit=set_all(Manufacturer=manufacturer))
    assert read(folder).volumes[0].meta["vendor"] == vendor
