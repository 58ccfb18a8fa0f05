"""DICOM out: a derived series that keeps values, padding and geometry, says what was done, and is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scans import CT, MR, PT, SECRETS, make_series, make_slice, pixels, put_pixels, regridded
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from n2s_med.errors import InputError, OutputError
from n2s_med.volumes import (
    DicomSeriesReader,
    DicomSeriesWriter,
    Provenance,
    read,
    valid_mask,
    write,
    write_sd_map,
)
from n2s_med.volumes.dicom_pixels import Storage
from n2s_med.volumes.quantise import pet_slope, pet_storage, quantised, set_slope


def headers(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def with_values(volume: MetaTensor, values) -> MetaTensor:
    return MetaTensor(torch.as_tensor(np.asarray(values), dtype=torch.float32), meta=volume.meta)


@pytest.mark.parametrize("sop_class", [CT, MR, PT])
def test_identity_comes_back_within_half_a_stored_step(tmp_path, provenance, sop_class):
    volume = read(make_series(tmp_path / "s", sop_class)).volumes[0]
    out = write(volume, tmp_path / "out", provenance=provenance)
    again = read(out).volumes[0]
    for z, ds in enumerate(headers(out)):
        step = float(ds.get("RescaleSlope", 1))
        assert float((again - volume)[..., z].abs().max()) <= step / 2 * (1 + 1e-5)
    np.testing.assert_allclose(again.affine, volume.affine)
    assert {k: v for k, v in again.meta.items() if k in ("units", "modality", "suv", "spacing_mm")} == {
        k: v for k, v in volume.meta.items() if k in ("units", "modality", "suv", "spacing_mm")
    }


def test_pet_gets_the_slope_of_each_slice_as_it_is_written(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s", PT)).volumes[0]
    changed = with_values(volume, volume.numpy() * 1.2345 + 0.01)
    changed[..., 2] = 0
    out = write(changed, tmp_path / "out", provenance=provenance)
    for z, ds in enumerate(headers(out)):
        assert len(ds["RescaleSlope"].value.original_string) <= 16
        assert ds.RescaleIntercept == 0
        assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 16, 15)
        assert "SmallestImagePixelValue" not in ds
        assert ds.pixel_array.max() == (0 if z == 2 else 32767)
        values = ds.pixel_array * float(ds.RescaleSlope)
        error = np.abs(values - changed[0, :, :, z].numpy().T).max()
        assert error <= float(ds.RescaleSlope) / 2 * (1 + 1e-5)


@settings(max_examples=60, deadline=None)
@given(
    peak=st.floats(1e-6, 1e9),
    floor=st.floats(0, 1),
    source=st.floats(1e-6, 1e6),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_pet_slice_is_stored_within_half_a_step(peak, floor, source, signed, seed):
    rng = np.random.default_rng(seed)
    values = (rng.uniform(-floor * signed, 1, size=(4, 5)) * peak).astype(np.float32)
    ds = make_slice(PT, pixels(kind="i2" if signed else "u2")[0], 0, step=1.0, study="x")
    storage = pet_storage(Storage.of(ds, Path("x")), signed=signed)
    text = pet_slope(values.ravel(), source, storage)
    assert len(text) <= 16
    slope = set_slope(ds, 0, text, storage, changed=True)
    assert (float(str(ds.RescaleSlope)), ds.RescaleIntercept) == (slope, 0)
    stored = quantised(values, (slope, 0.0), storage)
    error = np.abs(stored * slope - values.astype(np.float64)).max()
    assert error <= slope * (0.5 + 1e-3)
    assert slope <= 2.001 * np.abs(values).max() / 32767


def test_negative_pet_of_unsigned_source_becomes_signed(tmp_path, provenance):
    folder = make_series(tmp_path / "s", PT, stored=pixels(kind="u2"))
    volume = read(folder).volumes[0]
    positive = headers(write(volume, tmp_path / "positive", provenance=provenance))
    assert {ds.PixelRepresentation for ds in positive} == {0}
    changed = with_values(volume, volume.numpy() - 10)
    out = write(changed, tmp_path / "out", provenance=provenance)
    assert {ds.PixelRepresentation for ds in headers(out)} == {1}
    assert float((read(out).volumes[0] - changed).abs().max()) < 0.01


def test_ct_keeps_its_scale_and_clips(tmp_path, provenance):
    def twelve_bits(ds, index):
        put_pixels(ds, pixels(kind="u2")[index])
        ds.BitsStored, ds.HighBit = 12, 11

    volume = read(make_series(tmp_path / "s", edit=twelve_bits)).volumes[0]
    changed = with_values(volume, volume.numpy() + 0.3)
    changed[0, 0, 0, 0], changed[0, 1, 0, 0] = -5000.0, 9000.0
    out = write(changed, tmp_path / "out", provenance=provenance)
    again = read(out).volumes[0]
    assert float(again[0, 0, 0, 0]) == -1024
    assert float(again[0, 1, 0, 0]) == 4095 - 1024
    changed[0, :2, 0, 0] = again[0, :2, 0, 0]
    assert float((again - changed).abs().max()) == pytest.approx(0.3, abs=1e-4)
    ds = headers(out)[0]
    assert (ds.BitsStored, ds.RescaleSlope, ds.RescaleIntercept) == (12, 1, -1024)


def padded(ds, index):  # noqa: ARG001
    ds.add_new("PixelPaddingValue", "SS", -2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1998)


@pytest.mark.parametrize("sop_class", [CT, PT])
def test_padding_is_bit_identical_and_no_value_becomes_padding(tmp_path, provenance, sop_class):
    stored = pixels()
    stored[:, :2] = -1999
    volume = read(make_series(tmp_path / "s", sop_class, stored=stored, edit=padded)).volumes[0]
    changed = with_values(volume, volume.numpy())
    changed[~valid_mask(volume)] = float("nan")  # whatever stands there
    if sop_class == CT:
        changed[0, :, 5, 0] = -1999 - 1024
    out = write(changed, tmp_path / "out", provenance=provenance)
    again = read(out).volumes[0]
    assert bool((valid_mask(again) == valid_mask(volume)).all())
    for z, ds in enumerate(headers(out)):
        np.testing.assert_array_equal(ds.pixel_array[:2], stored[z, :2])


def test_header_says_what_it_is_and_what_was_done(tmp_path, provenance):
    folder = make_series(tmp_path / "s", CT)
    out = write(read(folder).volumes[0], tmp_path / "out", provenance=provenance)
    sources = {ds.SOPInstanceUID: ds for ds in headers(folder)}
    for ds in headers(out):
        (source_item,) = ds.SourceImageSequence
        source = sources[source_item.ReferencedSOPInstanceUID]
        assert source_item.ReferencedSOPClassUID == source.SOPClassUID
        assert source_item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert ds.ImageType == ["DERIVED", "PRIMARY", "AXIAL"]
        assert ds.DerivationDescription == provenance.description()
        assert ds.DerivationCodeSequence[0].CodeValue == "113087"
        (equipment,) = ds.ContributingEquipmentSequence
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (equipment.SoftwareVersions, equipment.ManufacturerModelName) == ("0.1.0", "toy")
        assert "ab12cd" in equipment.ContributionDescription
        assert ds.SOPInstanceUID != source.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert ds.SeriesNumber == 1004
        assert ds.SeriesDescription == "Series of slices (denoised)"
        assert ds.SeriesDate != source.SeriesDate
        for kept in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "FrameOfReferenceUID",
                     "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber",
                     "AcquisitionTime", "StudyDate", "Manufacturer", "KVP"):  # fmt: skip
            assert ds[kept].value == source[kept].value
    assert len({ds.SeriesInstanceUID for ds in headers(out)}) == 1
    assert len({ds.SOPInstanceUID for ds in headers(out)}) == 4


def test_pet_keeps_the_series_time_that_decay_counts_from(tmp_path, provenance):
    out = write(read(make_series(tmp_path / "s", PT)).volumes[0], tmp_path / "out", provenance=provenance)
    ds = headers(out)[0]
    assert (ds.SeriesDate, ds.SeriesTime, ds.FrameReferenceTime) == ("20200102", "100000", 1000)
    assert ds.ContentDate != "20200102"


def test_times_are_in_the_zone_that_the_source_names(tmp_path, provenance):
    def in_zone(ds, index):  # noqa: ARG001
        ds.TimezoneOffsetFromUTC = "+1400"

    out = write(read(make_series(tmp_path / "s", edit=in_zone)).volumes[0], tmp_path / "out", provenance=provenance)
    ds = headers(out)[0]
    said = datetime.strptime(f"{ds.ContentDate}{ds.ContentTime}+1400", "%Y%m%d%H%M%S.%f%z")
    assert abs((datetime.now(UTC) - said).total_seconds()) < 600


def test_uids_depend_on_source_model_and_parameters_alone(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]

    def uids(name, used):
        return [
            (ds.SOPInstanceUID, ds.SeriesInstanceUID) for ds in headers(write(volume, tmp_path / name, provenance=used))
        ]

    first = uids("a", provenance)
    assert uids("b", provenance) == first
    other = Provenance("toy", "ab12cd", "poisson", {"gain": 0.6, "steps": 3}, "0.1.0")
    assert not set(uids("c", other)) & set(first)
    assert all(len(uid) <= 64 for pair in first for uid in pair)


def test_what_no_longer_holds_is_dropped_and_what_others_need_is_kept(tmp_path, provenance):
    def decorate(ds, index):  # noqa: ARG001
        ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 0, 99
        icon = Dataset()
        icon.add_new((0x0009, 0x0010), "LO", "ACME")
        ds.IconImageSequence, ds.DigitalSignaturesSequence = [icon], [Dataset()]
        ds.LossyImageCompression, ds.BurnedInAnnotation = "01", "NO"
        ds.LossyImageCompressionRatio, ds.LossyImageCompressionMethod = "10", "ISO_10918_1"
        ds.DerivationDescription, ds.ImageType = "Reformatted", ["DERIVED", "SECONDARY"]
        ds.NumberOfTimeSlices = 4
        ds.private_block(0x09, "ACME", create=True).add_new(1, "LO", SECRETS[0])
        ds.private_block(0x43, "GEMS_PARM_01", create=True).add_new(0x39, "IS", "1000")
        ds.private_block(0x43, "GEMS_PARM_01").add_new(0x40, "LO", "x")

    folder = make_series(tmp_path / "s", MR, edit=decorate)
    ds = headers(write(read(folder).volumes[0], tmp_path / "out", provenance=provenance))[0]
    for gone in ("SmallestImagePixelValue", "LargestImagePixelValue", "IconImageSequence",
                 "DigitalSignaturesSequence", "NumberOfTimeSlices"):  # fmt: skip
        assert gone not in ds
    assert [(hex(e.tag), str(e.value)) for e in ds if e.tag.is_private] == [
        ("0x430010", "GEMS_PARM_01"),
        ("0x431039", "1000"),
    ]
    assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 10)
    assert ds.DerivationDescription == f"Reformatted; {provenance.description()}"
    assert ds.ImageType == ["DERIVED", "PRIMARY", "OTHER"]
    assert ds.BurnedInAnnotation == "NO"


def test_pet_keeps_what_its_values_mean_and_its_flags_and_characters(tmp_path, provenance):
    def stated(ds, index):  # noqa: ARG001
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 192", "Müller^Jürgen"
        ds.PatientIdentityRemoved, ds.DeidentificationMethod, ds.BurnedInAnnotation = "YES", "by hand", "NO"
        ds.SeriesDescription = "x" * 64
        ds.ExtendedOffsetTable = ds.ExtendedOffsetTableLengths = b"\0" * 8

    folder = make_series(tmp_path / "s", PT, edit=stated)
    sources = {ds.SOPInstanceUID: ds for ds in headers(folder)}
    for ds in headers(write(read(folder).volumes[0], tmp_path / "out", provenance=provenance)):
        source = sources[ds.SourceImageSequence[0].ReferencedSOPInstanceUID]
        for kept in ("Units", "DecayFactor", "DecayCorrection", "CorrectedImage", "FrameReferenceTime", "SeriesType",
                     "RadiopharmaceuticalInformationSequence", "PatientWeight", "SpecificCharacterSet", "PatientName",
                     "PatientIdentityRemoved", "DeidentificationMethod", "BurnedInAnnotation"):  # fmt: skip
            assert ds[kept].value == source[kept].value, kept
        assert ds.SeriesDescription == "x" * 53 + " (denoised)"
        assert not {"ExtendedOffsetTable", "ExtendedOffsetTableLengths"} & set(ds.dir())


@pytest.mark.parametrize(("creator", "group", "offset"), [
    ("GEMS_PETD_01", 0x0009, 0x0D), ("GEMS_PARM_01", 0x0043, 0x2F), ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("Philips Imaging DD 001", 0x2001, 0x03), ("Philips MR Imaging DD 001", 0x2005, 0x0E),
    ("Philips PET Private Group", 0x7053, 0x09),
])  # fmt: skip
def test_each_vendor_s_scale_b_value_and_timing_stay(tmp_path, provenance, creator, group, offset):
    def private(ds, index):  # noqa: ARG001
        block = ds.private_block(group, creator, create=True)
        block.add_new(offset, "DS", "0")
        block.add_new(0xF1, "LO", SECRETS[0])
        ds.private_block(group, "ACME", create=True).add_new(offset, "LO", SECRETS[1])

    folder = make_series(tmp_path / "s", MR, edit=private)
    for ds in headers(write(read(folder).volumes[0], tmp_path / "out", provenance=provenance)):
        assert [e.value for e in ds if e.tag.is_private] == [creator, 0]


def test_lossy_transfer_syntax_is_said_ever_after(tmp_path, provenance):
    path = tmp_path / "lossy"
    ds = pydicom.dcmread(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.81"  # near-lossless; the same codestreams
    ds.save_as(path)
    out = write(read(path).volumes[0], tmp_path / "out", provenance=provenance)
    (ds,) = headers(out)
    assert (ds.LossyImageCompression, ds.LossyImageCompressionMethod) == ("01", "ISO_14495_1")
    assert ds.LossyImageCompressionRatio > 1


@pytest.mark.parametrize("name", ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit",
                                  "MR_small_jp2klossless", "CT_small"])  # fmt: skip
def test_any_readable_encoding_is_written_as_explicit_little_endian(tmp_path, provenance, name):
    volume = read(get_testdata_file(f"{name}.dcm")).volumes[0]
    again = read(write(volume, tmp_path / "out", provenance=provenance)).volumes[0]
    assert bool((again == volume).all())


def test_eight_bits_and_odd_lengths(tmp_path, provenance):
    folder = make_series(tmp_path / "s", MR, stored=pixels((2, 3, 3), high=255, kind="u1"))
    volume = read(folder).volumes[0]
    again = read(write(volume, tmp_path / "out", provenance=provenance)).volumes[0]
    assert bool((again == volume).all())


def test_overlays_of_a_big_endian_source_are_dropped(tmp_path, provenance):
    ds = pydicom.dcmread(get_testdata_file("MR_small_bigendian.dcm"))
    ds.add_new((0x6000, 0x3000), "OW", b"\1\2" * 256)
    ds.save_as(tmp_path / "s")
    (ds,) = headers(write(read(tmp_path / "s").volumes[0], tmp_path / "out", provenance=provenance))
    assert (0x6000, 0x3000) not in ds


def test_overlays_in_unused_bits_are_dropped_and_others_kept(tmp_path, provenance):
    def overlay(ds, index):
        ds.add_new((0x6000, 0x0102), "US", 12)
        if index:
            ds.add_new((0x6000, 0x3000), "OW", b"\1\2\3\4")

    made = headers(write(read(make_series(tmp_path / "s", edit=overlay)).volumes[0], tmp_path / "out",
                         provenance=provenance))  # fmt: skip
    assert [(0x6000, 0x0102) in ds for ds in made] == [False, True, True, True]


def test_real_world_map_of_stored_values_goes_when_the_slope_does(tmp_path, provenance):
    def mapped(ds, index):  # noqa: ARG001
        ds.RealWorldValueMappingSequence = [Dataset()]

    for sop_class, kept in ((MR, True), (PT, False)):
        volume = read(make_series(tmp_path / sop_class, sop_class, edit=mapped)).volumes[0]
        out = write(volume * 0.4, tmp_path / f"out{sop_class}", provenance=provenance)
        assert all(("RealWorldValueMappingSequence" in ds) is kept for ds in headers(out))


def test_time_points_are_written_each_to_its_source(tmp_path, provenance):
    for time in range(2):

        def edit(ds, index, time=time):
            ds.SOPInstanceUID, ds.FrameReferenceTime = f"1.2.3.{time}.{index}", str(9000 + time)

        make_series(tmp_path / "s" / str(time), PT, stored=pixels() + 500 * time, edit=edit)
    volume = read(tmp_path / "s").volumes[0]
    again = read(write(volume, tmp_path / "out", provenance=provenance)).volumes[0]
    assert again.shape == (2, 5, 6, 4)
    np.testing.assert_allclose(again, volume, atol=0.01)


def test_existing_output_is_refused_and_replaced_only_when_asked(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    out = write(volume, tmp_path / "out", provenance=provenance)
    with pytest.raises(OutputError, match="exists already"):
        write(volume, out, provenance=provenance)
    changed = with_values(volume, volume.numpy() + 5)
    write(changed, out, provenance=provenance, overwrite=True)
    assert float((read(out).volumes[0] - volume).mean()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]


def test_overwriting_never_touches_the_source_or_other_things(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    for place in (tmp_path / "s", tmp_path):
        with pytest.raises(OutputError, match="contains the source"):
            write(volume, place, provenance=provenance, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not a folder of DICOM files only"):
        write(volume, other, provenance=provenance, overwrite=True)
    with pytest.raises(OutputError, match="not a folder of DICOM files only"):
        write(volume, other / "thesis.txt", provenance=provenance, overwrite=True)
    assert (other / "thesis.txt").read_text() == "precious"


def test_failure_half_way_leaves_the_old_series_and_nothing_else(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    out = write(volume, tmp_path / "out", provenance=provenance)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    broken = with_values(volume, volume.numpy())
    broken[..., 3] = float("nan")
    with pytest.raises(OutputError, match="NaN"):
        write(broken, out, provenance=provenance, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]


def test_failed_swap_puts_the_old_series_back(tmp_path, provenance, monkeypatch):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    out = write(volume, tmp_path / "out", provenance=provenance)
    replace = Path.replace

    def fail_where_it_was_moved_away(self, target):
        if not target.exists():
            raise OSError(5, "input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_where_it_was_moved_away)
    with pytest.raises(OutputError, match="system cannot write it"):
        write(volume, out, provenance=provenance, overwrite=True)
    monkeypatch.undo()
    assert len(read(out).volumes) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]


def test_no_space_is_said_before_anything_is_written(tmp_path, provenance, monkeypatch):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("n2s_med.atomic.shutil.disk_usage", lambda _: usage)
    for name in ("out", "out.nii", "out.nii.gz"):
        with pytest.raises(OutputError, match="no space is left"):
            write(volume, tmp_path / name, provenance=provenance)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_disk_full_half_way_is_said_and_cleaned_up(tmp_path):
    """A file size limit of the process stands for a full disk."""
    make_series(tmp_path / "s", stored=pixels((1, 64, 64)))
    code = f"""
        import resource, signal, sys
        from n2s_med.errors import OutputError
        from n2s_med.volumes import Provenance, read, write
        volume = read({str(tmp_path / "s")!r}).volumes[0]
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for name in ("out", "out.nii"):
            try:
                write(volume, __import__("pathlib").Path({str(tmp_path)!r}) / name,
                      provenance=Provenance("m", "h", "l", {{}}, "0"))
            except OutputError as error:
                print(error, file=sys.stderr)
                continue
            sys.exit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "system cannot write it" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_place_is_said(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="permission"):
        write(volume, tmp_path / "locked" / "out", provenance=provenance)


def test_place_below_a_file_is_said(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file, not a folder"):
        write(volume, tmp_path / "file" / "out", provenance=provenance)


def test_source_must_still_be_there_and_the_grid_the_same(tmp_path, provenance):
    folder = make_series(tmp_path / "s")
    volume = read(folder).volumes[0]
    cropped = regridded(volume, volume[:, 1:], volume.affine)
    moved = regridded(volume, volume, volume.affine * 2)
    for wrong in (cropped, moved):
        with pytest.raises(OutputError, match="no longer on the grid"):
            write(wrong, tmp_path / "out", provenance=provenance)
    (folder / "one-001").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InputError, match="has changed"):
        write(volume, tmp_path / "out", provenance=provenance)
    (folder / "one-001").unlink()
    with pytest.raises(InputError, match="is gone"):
        write(volume, tmp_path / "out", provenance=provenance)


def test_interruption_leaves_nothing(tmp_path, provenance, monkeypatch):
    volume = read(make_series(tmp_path / "s")).volumes[0]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("n2s_med.volumes.dicom_writer.quantised", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(volume, tmp_path / "out", provenance=provenance)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # LoadImage tries all of MONAI's readers
def test_monai_transforms_read_and_write_series(tmp_path, provenance):
    folder = make_series(tmp_path / "s", PT)
    volume = read(folder).volumes[0]
    loaded = LoadImage(reader=DicomSeriesReader(), image_only=True)(folder)
    assert bool((loaded == volume).all())
    np.testing.assert_array_equal(loaded.affine, volume.affine)
    save = SaveImage(writer=DicomSeriesWriter, output_ext="", print_log=False)
    save.set_options(write_kwargs={"provenance": provenance})
    save(loaded, filename=tmp_path / "out")
    np.testing.assert_allclose(read(tmp_path / "out").volumes[0], volume, atol=0.01)


def test_monai_reader_wants_one_series(tmp_path):
    reader = DicomSeriesReader()
    make_series(tmp_path / "a", study="one")
    make_series(tmp_path / "b", study="two")
    assert reader.verify_suffix(tmp_path / "a")
    assert reader.verify_suffix([tmp_path / "a" / "one-001"])
    assert reader.read([tmp_path / "a" / "one-001"]).shape == (1, 5, 6, 1)
    with pytest.raises(InputError, match="2 series here"):
        reader.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM images here"):
        reader.read(tmp_path / "empty")


def test_monai_writer_wants_a_volume_and_provenance(tmp_path):
    with pytest.raises(OutputError, match="no provenance"):
        DicomSeriesWriter().write(tmp_path / "out")


def _moved(path: Path) -> None:
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = [0, 0, 500]
    ds.save_as(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Path.unlink, "the source file is gone"),
        (lambda path: path.write_bytes(b"another file"), "the source file has changed"),
        (_moved, "no longer on the grid of its source"),
    ],
    ids=["gone", "replaced", "moved"],
)
def test_a_source_that_changed_after_it_was_read_is_refused(tmp_path, provenance, change, told):
    folder = make_series(tmp_path / "s")
    volume = read(folder).volumes[0]
    change(sorted(folder.iterdir())[0])
    with pytest.raises((InputError, OutputError), match=told):
        write(volume, tmp_path / "out", provenance=provenance)
    assert not (tmp_path / "out").exists()


def test_names_that_fit_no_format_are_refused(tmp_path, provenance):
    synthetic = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"format": "nifti"})
    for writer in (write, write_sd_map):
        with pytest.raises(OutputError, match=r"end it in \.nii\.gz|End it in \.nii\.gz"):
            writer(synthetic, tmp_path / "out.png", provenance=provenance)


def test_encapsulated_frame_of_another_size_is_refused(tmp_path):
    ds = pydicom.dcmread(get_testdata_file("MR_small_jp2klossless.dcm"))
    ds.Rows = 65
    ds.save_as(tmp_path / "j2k")
    ds = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    ds.Rows = ds.Columns = 65000
    ds.PixelData = encapsulate([b"\0" * 64])
    ds.save_as(tmp_path / "rle")
    for name in ("j2k", "rle"):
        with pytest.raises(InputError, match="cannot be decoded"):
            read(tmp_path / name)


@pytest.mark.parametrize(("sop_class", "unit"), [(CT, "[hnsf'U]"), (PT, "Bq/ml"), (MR, "1")])
def test_sd_map_is_a_parametric_map_on_the_grid_of_its_source(tmp_path, provenance, sop_class, unit):
    volume = read(make_series(tmp_path / "s", sop_class)).volumes[0]
    sd = with_values(volume, np.abs(volume.numpy()) * 0.1)
    path = write_sd_map(sd, tmp_path / "sd.dcm", provenance=provenance)
    ds = pydicom.dcmread(path)
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    shared, frames = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
    mapping = shared.RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == unit
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "113061"
    order = np.argsort([frame.PlanePositionSequence[0].ImagePositionPatient[2] for frame in frames])
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(4, 6, 5)[order]
    np.testing.assert_array_equal(values, sd[0].numpy().transpose(2, 1, 0))
    assert ds.DerivationDescription == provenance.description()
    assert ds.PatientName == SECRETS[0]
    with pytest.raises(OutputError, match="exists already"):
        write_sd_map(sd, path, provenance=provenance)
    again = write_sd_map(sd, tmp_path / "again.dcm", provenance=provenance)
    assert pydicom.dcmread(again).SOPInstanceUID == ds.SOPInstanceUID


def test_sd_map_refuses_what_it_cannot_hold(tmp_path, provenance):
    volume = read(make_series(tmp_path / "s")).volumes[0]
    several = regridded(volume, torch.cat([volume, volume]), volume.affine)
    with pytest.raises(OutputError, match="holds one volume"):
        write_sd_map(several, tmp_path / "sd.dcm", provenance=provenance)
    with pytest.raises(OutputError, match="NaN"):
        write_sd_map(volume * float("nan"), tmp_path / "sd.dcm", provenance=provenance)
    with pytest.raises(OutputError, match="folder"):
        write_sd_map(volume, tmp_path, provenance=provenance, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
