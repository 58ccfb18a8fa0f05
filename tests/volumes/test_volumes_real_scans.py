"""Real scans, found by the environment variable N2S_DATA: in and out without loss, or refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from monai.data import MetaTensor

from n2s_med.errors import UnsupportedError
from n2s_med.volumes import Provenance, read, valid_mask, write, write_sd_map
from n2s_med.volumes.dicom_files import is_dicom, read_whole
from n2s_med.volumes.dicom_pixels import stored_frames
from n2s_med.volumes.quiet import quiet

PET = "pet/dicom_ge_discoveryst_sts001"
SERIES = {
    PET: ((1, 128, 128, 267), "pet", "BQML"),
    "ct/dicom_philips_ingenuity_phantom_5mm": ((1, 512, 512, 28), "ct", "HU"),
    "mr/dicom_siemens_avanto_t2_sts001": ((1, 384, 384, 40), "mr", "arbitrary"),
    "mr/dicom_ge_signa_breast_sagittal": ((1, 256, 256, 60), "mr", "arbitrary"),
    "ibsi_sts002_cropped/dicom/PET": ((1, 30, 27, 48), "pet", "GML"),
    "ibsi_sts002_cropped/dicom/CT": ((1, 161, 143, 48), "ct", "HU"),
    "ibsi_sts002_cropped/dicom/MR_T1": ((1, 115, 90, 35), "mr", "arbitrary"),
    "mr/dicom_ge_architect_fmri_4d_classic": ((3, 64, 64, 48), "mr", "arbitrary"),
    "enhanced/ct_multiframe_supplemental_pydicom": ((1, 512, 512, 2), "ct", "unknown"),
    "enhanced/ct_multiframe_tiny_dcmqi": ((1, 24, 38, 3), "ct", "unknown"),
    "enhanced/mr_philips_elition_pcasl_real": ((1, 96, 96, 40), "mr", "arbitrary"),
    "enhanced/mr_siemens_vida_xa10_fmri": ((4, 64, 64, 6), "mr", "arbitrary"),
    "ultrasound/pydicom-data": ((1, 1024, 768, 1), "us", "arbitrary"),
}
PROVENANCE = Provenance("identity", "00", "none", {}, "0.1.0")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:SimpleITK"),
]


@cache
def volume_of(folder: Path) -> MetaTensor:
    (volume,) = read(folder).volumes
    return volume


@pytest.fixture(scope="module")
def derived(data, tmp_path_factory):
    """Return a function that gives the identity's output for a series, written once."""
    root = tmp_path_factory.mktemp("derived")

    @cache
    def written(name: str) -> Path:
        return write(volume_of(data / name), root / name.replace("/", "-"), provenance=PROVENANCE)

    return written


def images(folder: Path) -> list[pydicom.Dataset]:
    with quiet():
        return [pydicom.dcmread(path) for path in sorted(folder.iterdir()) if path.name != "LICENSE"]


def source_image(ds: pydicom.Dataset) -> pydicom.Dataset:
    """Return the reference to the source of the derived image ``ds``, or of its first frame."""
    frames = ds.get("PerFrameFunctionalGroupsSequence")
    return (frames[0].DerivationImageSequence[-1] if frames else ds).SourceImageSequence[0]


def slopes_of(ds: pydicom.Dataset) -> list[float]:
    """Return the slope of each frame; in these enhanced files it is the same for all."""
    if "PerFrameFunctionalGroupsSequence" not in ds:
        return [float(ds.get("RescaleSlope") or 1)]
    groups = [ds.SharedFunctionalGroupsSequence[0], *ds.PerFrameFunctionalGroupsSequence]
    found = {float(i.RescaleSlope) for g in groups for i in g.get("PixelValueTransformationSequence") or ()}
    return [found.pop()] * ds.NumberOfFrames


@pytest.mark.parametrize("name", SERIES)
def test_series_is_read_as_what_it_is(data, name):
    shape, modality, units = SERIES[name]
    volume = volume_of(data / name)
    assert volume.shape == shape
    assert (volume.meta["modality"], volume.meta["units"]) == (modality, units)


@pytest.mark.parametrize("name", SERIES)
def test_identity_comes_back_within_half_a_stored_step_of_each_slice(data, derived, name):
    volume, out = volume_of(data / name), derived(name)
    again = read(out).volumes[0]
    shape = volume.shape
    slopes = [slope for ds in images(out) for slope in slopes_of(ds)]
    for index, slope in enumerate(slopes):
        c, z = divmod(index, shape[3])
        error = float((again[c, :, :, z] - volume[c, :, :, z]).abs().max())
        assert error <= slope / 2 * (1 + 1e-4)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-9)


def test_pet_slopes_are_no_coarser_than_the_sources(data, derived):
    sources = {ds.SOPInstanceUID: ds for ds in images(data / PET)}
    assert len({float(ds.RescaleSlope) for ds in sources.values()}) > 250
    for ds in images(derived(PET)):
        source = sources[ds.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert float(ds.RescaleSlope) <= float(source.RescaleSlope) * (1 + 1e-6)
        np.testing.assert_array_equal(ds.pixel_array, source.pixel_array)  # nothing changed, nothing rounded
        assert ds.DecayFactor == source.DecayFactor
        assert ds.FrameReferenceTime == source.FrameReferenceTime


def test_pet_says_how_to_get_suv(data):
    suv = volume_of(data / PET).meta["suv"]
    assert suv["missing"] == ()
    assert suv["factor"] == pytest.approx(2.43e-4, rel=0.01)


@pytest.mark.parametrize("name", SERIES)
def test_simpleitk_sees_the_same_geometry_in_source_and_output(data, derived, name):
    if volume_of(data / name).shape[0] > 1 or name.startswith(("enhanced", "ultrasound")):
        pytest.skip("SimpleITK reads one stack of single-frame files with a position only")
    volume = volume_of(data / name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in sorted(derived(name).iterdir())])
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    tolerance = 0.05 if name == PET else 1e-4  # SimpleITK takes the first gap of an uneven table for all
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ lps, volume.affine, atol=tolerance)
    if name != PET:
        return
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert values.shape == volume.shape[1:]


@pytest.mark.parametrize("name", SERIES)
def test_nibabel_sees_the_same_geometry_in_a_nifti_of_it(data, tmp_path, name):
    volume = volume_of(data / name)
    image = nib.load(write(volume, tmp_path / "out.nii", provenance=PROVENANCE))
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-3)
    other = sitk.ReadImage(str(tmp_path / "out.nii"))
    assert other.GetSize()[:3] == tuple(volume.shape[1:])
    np.testing.assert_allclose(other.GetSpacing()[:3], volume.meta["spacing_mm"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["PET", "CT", "MR_T1"])
def test_dicom_and_nifti_of_the_same_voxels_agree(data, kind):
    root = data / "ibsi_sts002_cropped"
    dicom = volume_of(root / "dicom" / kind)
    (nifti,) = read(next((root / "nifti").rglob(f"{kind}*image.nii.gz"))).volumes
    directions = nib.aff2axcodes(dicom.affine.numpy())
    turned = nib.orientations.ornt_transform(
        nib.io_orientation(nifti.affine.numpy()), nib.orientations.axcodes2ornt(directions)
    )
    values = nib.apply_orientation(nifti[0].numpy(), turned)
    assert values.shape == tuple(dicom.shape[1:])
    step = 0.51 if kind != "PET" else float(dicom.max()) / 32767
    assert np.abs(values - dicom[0].numpy()).max() <= max(step, 1e-3)
    inverse = nib.orientations.inv_ornt_aff(turned, nifti.shape[1:])
    np.testing.assert_allclose(nifti.affine.numpy() @ inverse, dicom.affine, atol=0.02)


def refused(folder: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        read(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ct/dicom_philips_ingenuity_phantom_localizer_and_summary", ["localizer", "secondary capture"]),
        ("mr/dicom_siemens_trio_transfer_syntaxes", ["mosaic"]),
        ("mr/dicom_uih_umr770_dti_mosaic", ["mosaic"]),
        ("ultrasound/pydicom-data/US1_J2KR.dcm", ["colour"]),
        ("ultrasound/pydicom-data/OBXXXX1A_rle.dcm", ["colour"]),
        ("compressed/pydicom/MR_truncated.dcm", ["cannot be decoded"]),
        ("compressed/pydicom/JPEG-lossy.dcm", ["secondary capture"]),
        ("compressed/pydicom/rtdose.dcm", ["radiotherapy"]),
        ("compressed/pydicom-data/parametric_map_float.dcm", ["parametric map"]),
    ],
)
def test_what_is_not_handled_is_refused_with_its_reason(data, name, words):
    message = refused(data / name)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_nine_encodings_of_an_image_hold_the_same_pixels(data):
    """Implicit, explicit, big endian, RLE, JPEG lossless, JPEG-LS, JPEG 2000: a mosaic, so no volume, but pixels."""
    folder = data / "mr/dicom_siemens_trio_transfer_syntaxes"
    datasets = {path: read_whole(path) for path in sorted(folder.iterdir()) if is_dicom(path)}
    assert len({ds.file_meta.TransferSyntaxUID for ds in datasets.values()}) == 7
    first, *others = (next(iter(stored_frames(ds, path, [0]))) for path, ds in datasets.items())
    assert len(others) == 8
    assert int(first.astype(int).sum()) == 38036663
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_uneven_tilted_series_becomes_two_runs_on_their_own_places(data, tmp_path):
    folder = data / "ct/dicom_ge_hispeed_variable_tilt_spacing"
    positions = sorted((ds.ImagePositionPatient for ds in images(folder)), key=lambda p: p[2])
    runs = read(folder).volumes
    assert [volume.shape for volume in runs] == [(1, 512, 512, 14)] * 2
    for volume, where in zip(runs, (positions[:14], positions[14:]), strict=True):
        assert [note.partition(":")[0] for note in volume.meta["notes"]] == [
            "the series is unevenly spaced",
            "the gantry is tilted by 18.5 degrees",
        ]
        for z, position in enumerate(where):
            corner = volume.affine.numpy() @ [0, 0, z, 1]
            np.testing.assert_allclose(corner[:3] * [-1, -1, 1], position, atol=0.05)
        again = read(write(volume, tmp_path / f"{where[0][2]}", provenance=PROVENANCE)).volumes[0]
        np.testing.assert_array_equal(again, volume)
        np.testing.assert_allclose(again.affine, volume.affine)


def test_padding_of_a_real_scan_is_bit_identical(data, tmp_path):
    source = data / "ct/dicom_ge_hispeed_variable_tilt_spacing" / "01.dcm"
    (volume,) = read(source).volumes
    padding = ~valid_mask(volume)
    assert 0.2 < float(padding.float().mean()) < 0.3
    changed = MetaTensor(volume + 3, meta=volume.meta)
    (path,) = write(changed, tmp_path / "out", provenance=PROVENANCE).iterdir()
    before, after = (pydicom.dcmread(p).pixel_array for p in (source, path))
    np.testing.assert_array_equal(after[before == -1500], -1500)
    assert (after == -1500).sum() == (before == -1500).sum()


@pytest.mark.parametrize("name", [
    "nibabel/anatomical.nii", "nibabel/example4d.nii.gz", "nibabel/functional.nii", "dipy/small_64D.nii",
    "dipy/S0_10slices.nii.gz", "dipy/aniso_vox.nii.gz", "totalsegmentator/example_ct_sm.nii.gz",
])  # fmt: skip
def test_nifti_comes_back_with_its_header(data, tmp_path, name):
    path = data / "nifti_small" / name
    source = nib.load(path)
    (volume,) = read(path).volumes
    again = nib.load(write(volume, tmp_path / path.name, provenance=PROVENANCE))
    assert again.shape == source.shape
    np.testing.assert_allclose(again.affine, source.affine, atol=1e-6)
    np.testing.assert_allclose(again.get_fdata(), source.get_fdata(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(again.header["pixdim"], source.header["pixdim"])
    assert int(again.header["sform_code"]) == int(source.header["sform_code"])
    assert int(again.header["qform_code"]) == int(source.header["qform_code"])


def verified(path: Path) -> set[str]:
    """Return the errors that dciodvfy finds in ``path``."""
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}


def cross_checked(*folders: Path) -> tuple[int, set[str]]:
    """Return dcentvfy's exit status and errors, the files' names taken out."""
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.name != "LICENSE"]
    done = subprocess.run(["dcentvfy", *files], capture_output=True, text=True, errors="replace", check=False)
    lines = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    return done.returncode, {re.sub(r" for file <.*", "", line) for line in lines}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools (dciodvfy) is not installed")
@pytest.mark.parametrize("name", SERIES)
def test_derived_files_break_no_rule_that_their_sources_keep(data, derived, name):
    outputs = sorted(derived(name).iterdir())
    with quiet():
        uids = {str(pydicom.dcmread(p, stop_before_pixels=True, force=True).get("SOPInstanceUID")): p
                for p in (data / name).iterdir()}  # fmt: skip
    for path in (outputs[0], outputs[len(outputs) // 2], outputs[-1]):
        source = uids[source_image(pydicom.dcmread(path)).ReferencedSOPInstanceUID]
        assert verified(path) <= verified(source)


@pytest.mark.skipif(shutil.which("dcentvfy") is None, reason="dicom3tools (dcentvfy) is not installed")
@pytest.mark.parametrize("name", SERIES)
def test_derived_series_agrees_with_its_study(data, derived, name):
    alone, faults = cross_checked(data / name)
    together, all_faults = cross_checked(data / name, derived(name))
    assert all_faults <= faults
    assert alone != 0 or together == 0
    assert cross_checked(derived(name))[0] == 0


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools (dciodvfy) is not installed")
@pytest.mark.parametrize("name", [PET, "mr/dicom_ge_signa_breast_sagittal"])
def test_sd_map_breaks_no_rule(data, tmp_path, name):
    path = write_sd_map(volume_of(data / name) * 0.1, tmp_path / "sd.dcm", provenance=PROVENANCE)
    assert verified(path) == set()
