"""Phantoms hold what they promise: geometry against closed forms, DICOM against other readers."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from n2s_med.errors import ConfigurationError, OutputError
from n2s_med.phantoms import (
    SCENES,
    PetPhantom,
    brain_phantom,
    ct_phantom,
    pet_phantom,
    textured_volume,
    write_pet_series,
)
from n2s_med.phantoms.grids import Grid, band_field, gaussian_blur, power_law_field, smooth_field
from n2s_med.phantoms.pet import (
    BACKGROUND_BQML,
    BODY_HALF_LENGTH_MM,
    BODY_SEMI_AXES_MM,
    LUNG_CONTRAST,
    LUNG_RADIUS_MM,
)
from n2s_med.phantoms.solids import box, ellipsoid, filament, paint, sheet, tube

GAIN = 250.0
SPACING = (4.0, 4.0, 4.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def phantom() -> PetPhantom:
    return pet_phantom()


@pytest.fixture(scope="module")
def noisy(phantom: PetPhantom) -> torch.Tensor:
    counts = torch.poisson(phantom.activity[20:76:2, 30:66:2, ::6] / GAIN, generator=seeded())
    counts[:, :, 0] = 0  # the empty first slice that makes other readers guess integers
    return GAIN * counts


@pytest.fixture(scope="module")
def series(noisy: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pet") / "series"
    write_pet_series(noisy, folder, spacing_mm=(4.0, 3.0, 5.0), gain=GAIN)
    return folder


# --- the PET phantom ---------------------------------------------------------------------------------------


def test_total_activity_is_that_of_the_solids(phantom: PetPhantom) -> None:
    a, b = BODY_SEMI_AXES_MM
    area = math.pi * (a * b - (1 - LUNG_CONTRAST) * LUNG_RADIUS_MM**2)
    spheres = sum((s.contrast - 1) * 4 / 3 * math.pi * s.radius_mm**3 for s in phantom.spheres)
    expected = BACKGROUND_BQML * (2 * BODY_HALF_LENGTH_MM * area + spheres)
    assert phantom.object_activity.double().sum() * 64 == pytest.approx(expected, rel=1e-3)
    assert phantom.activity.double().sum() * 64 == pytest.approx(expected, rel=1e-3)


def test_each_sphere_adds_its_own_activity_and_volume(phantom: PetPhantom) -> None:
    for sphere in phantom.spheres:
        block = Grid((96, 96, 48), SPACING).block(sphere.centre_mm, sphere.radius_mm + 4)
        excess = (phantom.object_activity[block].double() - BACKGROUND_BQML).sum() * 64
        volume = 4 / 3 * math.pi * sphere.radius_mm**3
        assert excess == pytest.approx((sphere.contrast - 1) * BACKGROUND_BQML * volume, rel=0.02)


def test_sphere_masks_have_the_volume_of_the_spheres() -> None:
    fine = pet_phantom((80, 80, 20), (2.0, 2.0, 2.0))
    for sphere, mask in zip(fine.spheres, fine.sphere_masks, strict=True):
        assert int(mask.sum()) == pytest.approx(4 / 3 * math.pi * sphere.radius_mm**3 / 8, rel=0.08)


def test_contrast_is_exact_before_the_blur_and_lower_after(phantom: PetPhantom) -> None:
    for sphere, core in zip(phantom.spheres[2:], phantom.sphere_cores[2:], strict=True):
        true = phantom.object_activity[core].mean() / BACKGROUND_BQML
        seen = phantom.activity[core].mean() / BACKGROUND_BQML
        assert true == pytest.approx(sphere.contrast, abs=0.02)
        assert abs(seen - 1) < abs(sphere.contrast - 1)


def test_six_spheres_of_nema_four_hot_and_two_cold(phantom: PetPhantom) -> None:
    assert [2 * s.radius_mm for s in phantom.spheres] == [10, 13, 17, 22, 28, 37]
    assert [s.contrast for s in phantom.spheres] == [4, 4, 4, 4, 0, 0]
    assert phantom.spheres[0].name == "hot 10 mm"
    assert bool(phantom.sphere_cores.flatten(1).any(1).all())
    assert not bool((phantom.sphere_masks.sum(0) > 1).any())


def test_background_is_flat_and_air_is_exactly_zero(phantom: PetPhantom) -> None:
    warm = phantom.activity[phantom.background]
    assert warm.mean() == pytest.approx(BACKGROUND_BQML, rel=1e-4)
    assert warm.std() < 1e-3 * BACKGROUND_BQML
    assert float(phantom.activity[:5].abs().max()) == 0
    assert float(phantom.activity[:, :, (0, 47)].abs().max()) == 0
    assert phantom.activity.dtype == torch.float32
    assert not bool((phantom.background & phantom.sphere_masks.any(0)).any())


def test_pet_phantom_is_the_same_every_time(phantom: PetPhantom) -> None:
    assert torch.equal(pet_phantom().activity, phantom.activity)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((20, 96, 48), SPACING), ((96, 96, 48), (4.0, 4.0, 0.0)), ((96, 96, 4), SPACING)]
)
def test_a_field_of_view_without_the_spheres_is_refused(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    with pytest.raises(ValueError, match="at least"):
        pet_phantom(shape, spacing)


# --- the DICOM series --------------------------------------------------------------------------------------


def test_pydicom_reads_the_activity_within_half_a_step(series: Path, noisy: torch.Tensor) -> None:
    files = sorted(series.iterdir())
    assert len(files) == noisy.shape[2]
    for index, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        values = dataset.pixel_array.T * float(dataset.RescaleSlope)
        error = np.abs(values - noisy[:, :, index].numpy()).max()
        assert error <= 0.5001 * float(dataset.RescaleSlope)
        assert len(dataset["RescaleSlope"].value.original_string) <= 16
        assert dataset.PrimaryPromptsCountsAccumulated == round(float(noisy[:, :, index].sum()) / GAIN)


def test_simpleitk_reads_the_same_values_and_geometry(series: Path, noisy: torch.Tensor) -> None:
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    step = float(noisy.max()) / 65535
    assert np.abs(values - noisy.numpy()).max() <= 0.51 * step
    assert image.GetSpacing() == pytest.approx((4, 3, 5))
    corner = [-(n - 1) / 2 * h for n, h in zip(noisy.shape, (4, 3, 5), strict=True)]
    assert image.GetOrigin() == pytest.approx(corner)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(series: Path) -> None:
    for file in sorted(series.iterdir()):
        done = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "Error" not in done.stderr
        assert "Warning" not in done.stderr


def test_equal_input_writes_equal_bytes(series: Path, noisy: torch.Tensor, tmp_path: Path) -> None:
    write_pet_series(noisy, tmp_path / "again", spacing_mm=(4.0, 3.0, 5.0), gain=GAIN)
    for file in series.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    write_pet_series(noisy + 1, tmp_path / "other", spacing_mm=(4.0, 3.0, 5.0), gain=GAIN)
    first, other = (pydicom.dcmread(f / "slice_0001.dcm") for f in (series, tmp_path / "other"))
    assert first.SeriesInstanceUID != other.SeriesInstanceUID


def test_suv_can_be_computed_and_times_agree(series: Path) -> None:
    dataset = pydicom.dcmread(series / "slice_0002.dcm")
    tracer = dataset.RadiopharmaceuticalInformationSequence[0]
    assert dataset.Units == "BQML"
    assert dataset.DecayCorrection == "START"
    assert float(dataset.PatientWeight) > 0
    assert float(tracer.RadionuclideTotalDose) > 0
    late = float(dataset.FrameReferenceTime) / 1000
    decayed = 2 ** (late / float(tracer.RadionuclideHalfLife))
    assert float(dataset.DecayFactor) == pytest.approx(decayed, rel=1e-9)
    assert 0 < late < dataset.ActualFrameDuration / 2000


def test_an_empty_volume_is_written_too(tmp_path: Path) -> None:
    write_pet_series(torch.zeros(4, 5, 2), tmp_path / "empty", spacing_mm=SPACING, gain=1)
    dataset = pydicom.dcmread(tmp_path / "empty" / "slice_0001.dcm")
    assert float(dataset.RescaleSlope) > 0
    assert int(dataset.pixel_array.max()) == 0


@pytest.mark.parametrize(
    ("activity", "spacing", "gain"),
    [
        (torch.full((2, 2, 2), -1.0), SPACING, 1.0),
        (torch.full((2, 2, 2), torch.nan), SPACING, 1.0),
        (torch.zeros(2, 2), SPACING, 1.0),
        (torch.zeros(2, 2, 2), (4.0, 0.0, 4.0), 1.0),
        (torch.zeros(2, 2, 2), SPACING, 0.0),
    ],
)
def test_what_is_no_activity_is_refused(
    activity: torch.Tensor, spacing: tuple[float, float, float], gain: float, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"activity|spacing_mm"):
        write_pet_series(activity, tmp_path / "no", spacing_mm=spacing, gain=gain)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(series: Path, noisy: torch.Tensor, tmp_path: Path) -> None:
    before = sorted(series.iterdir())
    with pytest.raises(OutputError, match="exists already"):
        write_pet_series(noisy, series, spacing_mm=SPACING, gain=GAIN)
    assert sorted(series.iterdir()) == before
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_pet_series(noisy, tmp_path / "file" / "series", spacing_mm=SPACING, gain=GAIN)


# --- generated volumes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SCENES, None])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_generated_volumes_are_full_range_and_repeat(kind: str | None, seed: int) -> None:
    volume = textured_volume((24, 20, 16), seeded(seed), kind=kind)
    assert volume.shape == (24, 20, 16)
    assert volume.dtype == torch.float32
    assert float(volume.min()) == 0
    assert float(volume.max()) == 1
    assert torch.equal(volume, textured_volume((24, 20, 16), seeded(seed), kind=kind))
    assert not torch.equal(volume, textured_volume((24, 20, 16), seeded(seed + 10), kind=kind))


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("shape", [(33, 17, 1), (1, 12, 9), (3, 2, 5)])
def test_thin_and_odd_volumes_are_generated(kind: str, shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        volume = textured_volume(shape, seeded(seed), kind=kind)
        assert volume.shape == shape
        assert bool(torch.isfinite(volume).all())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="head"):
        textured_volume((8, 8, 8), seeded(), kind="nothing")


def test_generated_volumes_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    textured_volume((16, 16, 16), seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


# --- benchmark anatomies -----------------------------------------------------------------------------------


def test_brain_is_fixed_sharp_and_in_range() -> None:
    brain = brain_phantom((40, 48, 40))
    assert float(brain.min()) == pytest.approx(0.02)
    assert float(brain.max()) == 1
    assert brain.dtype == torch.float32
    assert torch.equal(brain, brain_phantom((40, 48, 40)))
    assert float((brain == brain.min()).float().mean()) > 0.1
    assert float((brain.diff(dim=0).abs() > 0.1).float().mean()) > 0.1


def test_ct_is_fixed_and_holds_air_lung_tissue_and_bone() -> None:
    ct = ct_phantom((48, 36, 29))
    assert torch.equal(ct, ct_phantom((48, 36, 29)))
    assert float(ct.min()) == -1000
    assert 500 < float(ct.max()) < 2000
    for low, high in ((-1001, -990), (-900, -800), (-120, -80), (30, 130)):
        assert float(((ct > low) & (ct < high)).float().mean()) > 0.05


# --- the tools ---------------------------------------------------------------------------------------------


def test_distances_to_solids_are_exact_where_they_have_closed_forms() -> None:
    grid = Grid((15, 15, 15))
    p = grid.points()
    r = p.norm(dim=0)
    assert torch.allclose(ellipsoid(p, (0, 0, 0), (4, 4, 4)), r - 4, atol=1e-4)
    assert torch.allclose(tube(p, (0, 0, 0), (0, 0, 0), (3, 3)), r - 3, atol=1e-4)
    assert float(box(p, (0, 0, 0), (2, 3, 4))[14, 7, 7]) == pytest.approx(5)
    assert float(box(p, (0, 0, 0), (2, 3, 4))[7, 7, 7]) == pytest.approx(-2)
    assert torch.allclose(sheet(grid, 3 * p[0] + 6), p[0] + 2, atol=1e-4)
    assert torch.allclose(filament(grid, 2 * p[0], 5 * p[1]), p[0].hypot(p[1]), atol=1e-4)


def test_painting_preserves_the_volume_of_a_ball() -> None:
    ball = ellipsoid(Grid((32, 32, 32)).points(), (0.3, 0.1, -0.2), (9, 9, 9))
    painted = paint(torch.zeros(32, 32, 32), ball, 1.0)
    assert float(painted.sum()) == pytest.approx(4 / 3 * math.pi * 9**3, rel=0.01)


def test_fields_have_unit_variance_and_the_asked_spectrum() -> None:
    grid = Grid((64, 64, 64))
    power = torch.fft.rfftn(power_law_field(grid, seeded(), 3.0)).abs().square()
    low, high = power[4, :4, :4].mean(), power[16, :4, :4].mean()
    assert math.log(low / high) / math.log(4) == pytest.approx(3, abs=0.5)
    for field in (band_field(grid, seeded(), 12.0), power_law_field(grid, seeded(), 2.0)):
        assert float(field.mean()) == pytest.approx(0, abs=1e-4)
        assert float(field.std()) == pytest.approx(1, abs=1e-3)
    assert float(smooth_field(grid, seeded(), 6.0).std()) == pytest.approx(1, abs=0.1)


def test_blur_keeps_constants_and_has_the_asked_width() -> None:
    assert torch.allclose(gaussian_blur(torch.ones(9, 7, 1), (1.0, 0.7, 2.0)), torch.ones(9, 7, 1))
    point = torch.zeros(41, 1, 1)
    point[20] = 1
    spread = gaussian_blur(point, (2.5, 0, 0)).flatten()
    x = torch.arange(41) - 20.0
    assert float((spread * x.square()).sum()) == pytest.approx(2.5**2, rel=0.01)
