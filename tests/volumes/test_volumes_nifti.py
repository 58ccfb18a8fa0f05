"""NIfTI in and out: values, geometry and header, any orientation, order of bytes and version."""

from __future__ import annotations

import gzip
import importlib.resources
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from made_scans import make_series, regridded
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from n2s_med.errors import InputError, OutputError, UnsupportedError
from n2s_med.volumes import NiftiReader, NiftiWriter, read, valid_mask, write, write_sd_map

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0.1, 3, 5], [0, 0, 0, 1]])


def carried(name: str) -> Path:
    """Return a file that nibabel carries for its own tests."""
    return Path(str(importlib.resources.files("nibabel"))) / "tests" / "data" / name


def values(shape=(4, 5, 6), dtype=np.int16):
    return np.random.default_rng(1).integers(0, 1000, size=shape).astype(dtype)


def save(path: Path, data, affine=AFFINE, kind=nib.Nifti1Image, **edits) -> Path:
    image = kind(data, affine)
    for name, value in edits.items():
        getattr(image.header, name)(*value)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5), (1, 4, 5, 1)),
        ((4, 5, 1), (1, 4, 5, 1)),
        ((4, 5, 6), (1, 4, 5, 6)),
        ((4, 5, 6, 1), (1, 4, 5, 6)),
        ((4, 5, 6, 3), (3, 4, 5, 6)),
        ((4, 5, 1, 3), (3, 4, 5, 1)),
        ((4, 5, 6, 3, 1), (3, 4, 5, 6)),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_two_to_four_dimensions(tmp_path, provenance, shape, expected, ending):
    data = values(shape)
    (volume,) = read(save(tmp_path / f"in{ending}", data)).volumes
    assert volume.shape == expected
    full = data.reshape((*shape[:4], *(1,) * (4 - len(shape))))
    np.testing.assert_array_equal(volume, np.moveaxis(full, 3, 0))
    assert volume.as_tensor().movedim(-1, 1).is_contiguous()  # each plane in one piece
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert valid_mask(volume).all()
    again = nib.load(write(volume, tmp_path / f"out{ending}", provenance=provenance))
    assert again.shape == shape
    np.testing.assert_array_equal(np.asarray(again.dataobj), data)


def test_meta_says_what_it_is(tmp_path):
    (volume,) = read(save(tmp_path / "Doe_Jane.nii", values((4, 5, 6, 2)))).volumes
    meta = volume.meta
    assert (meta["format"], meta["modality"], meta["units"]) == ("nifti", None, "unknown")
    assert meta["label"] == "NIfTI, 2 volumes of 4x5x6 voxels"
    np.testing.assert_allclose(meta["spacing_mm"], np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)


@pytest.mark.parametrize("name", ["example4d.nii.gz", "functional.nii", "anatomical.nii", "example_nifti2.nii.gz"])
def test_real_headers_survive(tmp_path, provenance, name):
    source = nib.load(carried(name))
    (volume,) = read(carried(name)).volumes
    np.testing.assert_allclose(volume[0, ..., 0], source.get_fdata().reshape((*source.shape, 1)[:4])[..., 0, 0])
    np.testing.assert_allclose(volume.affine, source.affine)
    again = nib.load(write(volume, tmp_path / name, provenance=provenance))
    assert type(again) is type(source)
    assert again.get_data_dtype() == np.float32
    assert (again.header.endianness, again.header["descrip"]) == ("<", b"denoised by n2s-med 0.1.0")
    np.testing.assert_allclose(again.get_fdata(), source.get_fdata(), rtol=1e-6)
    assert again.header.get_slope_inter() in ((None, None), (1.0, 0.0))
    for form in ("get_qform", "get_sform"):
        ours, theirs = getattr(again, form)(coded=True), getattr(source, form)(coded=True)
        assert ours[1] == theirs[1]
        if theirs[0] is not None:
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    assert again.header.get_xyzt_units() == source.header.get_xyzt_units()
    np.testing.assert_allclose(again.header["pixdim"], source.header["pixdim"])


def test_slope_and_intercept_are_applied_once(tmp_path, provenance):
    image = nib.Nifti1Image(values(dtype=np.int16), AFFINE)
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "in.nii")
    header = nib.load(tmp_path / "in.nii").dataobj
    (volume,) = read(tmp_path / "in.nii").volumes
    np.testing.assert_allclose(volume[0], np.asarray(header), rtol=1e-6)
    again = read(write(volume, tmp_path / "out.nii", provenance=provenance)).volumes[0]
    assert bool((again == volume).all())


def test_big_endian_and_other_types(tmp_path):
    for dtype in (np.uint8, np.int32, np.float32, np.float64, np.uint16):
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(dtype)
        nib.save(nib.Nifti1Image((values() % 200).astype(dtype), AFFINE, header), tmp_path / "big.nii")
        np.testing.assert_array_equal(read(tmp_path / "big.nii").volumes[0][0], values() % 200)


def test_units_of_length_are_turned_to_millimetres(tmp_path, provenance):
    path = save(tmp_path / "m.nii", values(), np.diag([0.002, 0.002, 0.003, 1]), set_xyzt_units=("meter", "sec"))
    (volume,) = read(path).volumes
    np.testing.assert_allclose(volume.meta["spacing_mm"], (2, 2, 3))
    again = nib.load(write(volume, tmp_path / "out.nii", provenance=provenance))
    assert again.header.get_xyzt_units() == ("meter", "sec")
    np.testing.assert_allclose(again.affine, np.diag([0.002, 0.002, 0.003, 1]))


def test_a_lone_slice_without_a_step_across_it(tmp_path, provenance):
    affine = np.diag([2.0, 3.0, 0.0, 1])
    image = nib.Nifti1Image(values((4, 5)), None)
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "in.nii")
    (volume,) = read(tmp_path / "in.nii").volumes
    assert volume.meta["spacing_mm"] == (2.0, 3.0, 1.0)
    again = nib.load(write(volume, tmp_path / "out.nii", provenance=provenance))
    assert again.shape == (4, 5)
    np.testing.assert_allclose(again.get_sform(), affine)


def test_intent_is_not_carried_over(tmp_path, provenance):
    path = save(tmp_path / "in.nii", values(), set_intent=("t test", (10,)))
    again = nib.load(write(read(path).volumes[0], tmp_path / "out.nii", provenance=provenance))
    assert again.header.get_intent()[0] == "none"


def test_same_volume_gives_the_same_bytes(tmp_path, provenance):
    volume = read(save(tmp_path / "in.nii.gz", values())).volumes[0]
    first = write(volume, tmp_path / "a.nii.gz", provenance=provenance).read_bytes()
    assert write(volume, tmp_path / "b.nii.gz", provenance=provenance).read_bytes() == first


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_voxels_are_refused_with_their_number(tmp_path, bad):
    data = values(dtype=np.float32)
    data[0, 0, :2] = bad
    with pytest.raises(InputError, match=r"2 of 120 voxels are NaN or infinite\. Replace them"):
        read(save(tmp_path / "in.nii", data))


def test_values_beyond_float32_are_refused(tmp_path):
    with pytest.raises(InputError, match="NaN or infinite"):
        read(save(tmp_path / "in.nii", np.full((2, 2, 2), 1e300)))


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colour_and_complex_are_refused(tmp_path, dtype):
    with pytest.raises(UnsupportedError, match="colour and complex"):
        read(save(tmp_path / "in.nii", np.zeros((2, 2, 2), dtype)))


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2, 2, 2)])
def test_other_numbers_of_dimensions_are_refused(tmp_path, shape):
    with pytest.raises(UnsupportedError, match="dimensions"):
        read(save(tmp_path / "in.nii", values(shape)))


def test_no_voxels_and_no_geometry_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no voxels|damaged"):
        read(save(tmp_path / "in.nii", values((0, 2, 2))))
    image = nib.Nifti1Image(values(), None)
    image.header.set_sform(np.diag([1, 1, 0, 1]), code=1)
    nib.save(image, tmp_path / "flat.nii")
    with pytest.raises(InputError, match="no usable geometry"):
        read(tmp_path / "flat.nii")


def test_an_unknown_unit_of_length_is_taken_for_millimetres(tmp_path, provenance):
    path = save(tmp_path / "in.nii", values())
    block = bytearray(path.read_bytes())
    block[123] = 0x96
    path.write_bytes(block)
    volume = read(path).volumes[0]
    np.testing.assert_allclose(volume.affine, AFFINE)
    write(volume, tmp_path / "out.nii", provenance=provenance)


def test_pairs_and_other_formats_under_the_name_are_refused(tmp_path):
    nib.save(nib.Nifti1Pair(values(), AFFINE), tmp_path / "pair.img")
    with pytest.raises(UnsupportedError, match="in two files"):
        read(tmp_path / "pair.img")
    with pytest.raises(UnsupportedError, match="single-file"):
        NiftiReader().read(tmp_path / "pair.img")
    (tmp_path / "text.nii").write_text("not an image at all " * 40)
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "text.nii")
    with pytest.raises(InputError, match="no such file"):
        NiftiReader().read(tmp_path / "nowhere.nii")


def test_truncated_files_are_refused(tmp_path):
    for ending, error in ((".nii", "can hold|damaged"), (".nii.gz", "damaged")):
        whole = save(tmp_path / f"whole{ending}", values((20, 20, 20))).read_bytes()
        part = tmp_path / f"part{ending}"
        part.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=error):
            read(part)


def test_absurd_claims_are_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path / "in.nii", values())
    block = bytearray(path.read_bytes())
    block[40:56] = np.array([3, 32767, 32767, 32767, 1, 1, 1, 1], "<i2").tobytes()
    path.write_bytes(block)
    (tmp_path / "in2.nii.gz").write_bytes(gzip.compress(bytes(block)))
    for name in ("in.nii", "in2.nii.gz"):
        with pytest.raises(InputError, match=r"more than its .* bytes can hold"):
            read(tmp_path / name)


def test_folder_of_images_gives_each_and_the_reasons_of_others(tmp_path):
    save(tmp_path / "a.nii", values())
    save(tmp_path / "b.NII.GZ".lower(), values())
    make_series(tmp_path / "dicom")
    save(tmp_path / "bad.nii", np.full((2, 2, 2), np.nan, np.float32))
    contents = read(tmp_path)
    assert [v.meta["format"] for v in contents.volumes] == ["dicom", "nifti", "nifti"]
    (refusal,) = contents.refusals
    assert str(refusal).endswith("bad.nii (NIfTI): 8 of 8 voxels are NaN or infinite")


def test_volume_moved_to_another_grid_is_written_there(tmp_path, provenance):
    (volume,) = read(save(tmp_path / "in.nii", values(), set_xyzt_units=("mm", "sec"))).volumes
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, 0]
    cropped = regridded(volume, volume[:, 1:], affine)
    again = nib.load(write(cropped, tmp_path / "out.nii", provenance=provenance))
    np.testing.assert_allclose(again.affine, cropped.affine, atol=1e-5)
    np.testing.assert_array_equal(again.get_fdata(), values()[1:])


def test_dicom_volume_can_be_written_as_nifti(tmp_path, provenance):
    (volume,) = read(make_series(tmp_path / "s")).volumes
    again = read(write(volume, tmp_path / "out.nii.gz", provenance=provenance)).volumes[0]
    assert bool((again == volume).all())
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


def test_several_volumes_without_a_source_header(tmp_path, provenance):
    made = MetaTensor(torch.rand(3, 4, 5, 6), affine=torch.as_tensor(AFFINE), meta={"format": "nifti"})
    again = read(write_sd_map(made, tmp_path / "sd.nii", provenance=provenance)).volumes[0]
    assert bool((again == made).all())


def test_existing_output_is_refused_and_replaced_only_when_asked(tmp_path, provenance):
    (volume,) = read(save(tmp_path / "in.nii", values())).volumes
    with pytest.raises(OutputError, match="it is the source"):
        write(volume, tmp_path / "in.nii", provenance=provenance, overwrite=True)
    out = save(tmp_path / "out.nii", values())
    with pytest.raises(OutputError, match="exists already"):
        write(volume, out, provenance=provenance)
    write(volume, out, provenance=provenance, overwrite=True)
    assert nib.load(out).get_data_dtype() == np.float32
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match="a folder is there"):
        write(volume, tmp_path / "folder.nii", provenance=provenance, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.nii", "in.nii", "out.nii"]


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # LoadImage tries all of MONAI's readers
def test_monai_transforms_read_and_write(tmp_path):
    path = save(tmp_path / "in.nii.gz", values((4, 5, 6, 2)))
    volume = read(path).volumes[0]
    loaded = LoadImage(reader=NiftiReader(), image_only=True)(path)
    assert bool((loaded == volume).all())
    np.testing.assert_array_equal(loaded.affine, volume.affine)
    assert NiftiReader().verify_suffix([path])
    SaveImage(writer=NiftiWriter, output_ext=".nii.gz", print_log=False)(loaded, filename=tmp_path / "out")
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), values((4, 5, 6, 2)))


def test_monai_writer_wants_voxels_and_a_name(tmp_path):
    writer = NiftiWriter()
    with pytest.raises(OutputError, match="no voxels"):
        writer.write(tmp_path / "out.nii")
    writer.set_data_array(np.zeros((1, 2, 2, 2)))
    writer.set_metadata(None)
    with pytest.raises(OutputError, match="not a NIfTI image's"):
        writer.write(tmp_path / "out.png")


def beside(path, **metadata):
    path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json").write_text(json.dumps(metadata))
    return path


def timed(tmp_path, **metadata):
    return beside(save(tmp_path / "scan.nii.gz", np.ones((3, 3, 3, 2), np.float32)), **metadata)


def test_the_json_file_beside_an_image_says_what_it_is(tmp_path):
    said = {"Modality": "PT", "Manufacturer": "SIEMENS", "Units": "Bq/mL", "FrameDuration": [60, 240]}
    meta = read(timed(tmp_path, **said)).volumes[0].meta
    assert (meta["modality"], meta["vendor"], meta["units"], meta["durations_s"]) == (
        "pet", "Siemens", "BQML", (60.0, 240.0),
    )  # fmt: skip


@pytest.mark.parametrize("said", [
    {}, {"Modality": "XX", "Units": "furlong", "Manufacturer": 7}, {"FrameDuration": [60]}, {"FrameDuration": [60, -1]},
    {"FrameDuration": [True, 60]}, {"ImageType": "P"}, {"ImageType": [1, 2, 3]},
])  # fmt: skip
def test_what_it_says_and_nobody_understands_is_left_out(tmp_path, said):
    meta = read(timed(tmp_path, **said)).volumes[0].meta
    assert (meta["modality"], meta["units"], meta.get("durations_s")) == (None, "unknown", None)


@pytest.mark.parametrize(("kind", "component"), [("M", "magnitude"), ("REAL", "real"), ("I", "imaginary")])
def test_parts_of_a_complex_signal_are_told_by_it(tmp_path, kind, component):
    path = timed(tmp_path, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", kind, "ND"])
    assert read(path).volumes[0].meta["component"] == component


def test_a_phase_is_refused_by_it(tmp_path):
    with pytest.raises(UnsupportedError, match=r"phase.*so its sidecar says"):
        read(timed(tmp_path, Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "P", "PHASE"]))


@pytest.mark.parametrize("text", ["{", "[]", "\udcff", "[" * 100_000])
def test_a_file_beside_it_that_is_no_json_refuses_it(tmp_path, text):
    path = timed(tmp_path)
    path.with_name("scan.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"scan\.json: no (readable JSON|JSON object)"):
        read(path)
