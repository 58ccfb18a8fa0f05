"""Denoising, from the command line to the files: what comes out, where, and that it comes out the same twice."""

from __future__ import annotations

import json
import re
import shutil
import weakref
from pathlib import Path

import mlflow
import nibabel as nib
import numpy as np
import pytest
import torch
from job_scans import (
    FAST,
    TINY,
    Run,
    blob,
    carried,
    datasets,
    denoise,
    files_below,
    nifti,
    noisy,
    report_of,
    train,
    values_of,
)
from monai.data import MetaTensor

from n2s_med.jobs.denoise import DenoiseJob
from n2s_med.jobs.places import names_of, stem_name
from n2s_med.noise import Gamma, Gaussian, Poisson, Tweedie
from n2s_med.score import base_model
from n2s_med.volumes import Source, read

LAWS = {
    "gaussian": (Gaussian(10.0), ("--sigma", 10)),
    "poisson": (Poisson(10.0), ("--gain", 10)),
    "gamma": (Gamma(50.0), ("--k", 50)),
    "tweedie": (Tweedie(1.5, 0.1), ("--power", 1.5, "--dispersion", 0.1)),
}


@pytest.mark.parametrize("given", [True, False], ids=["given", "estimated"])
@pytest.mark.parametrize("law", LAWS)
def test_every_law_from_file_to_file(run: Run, tmp_path: Path, law: str, given: bool) -> None:
    model, level = LAWS[law]
    source = nifti(tmp_path / "scan.nii.gz", noisy(model))
    done = denoise(run, source, tmp_path / "out.nii.gz", "--noise", law, *(level if given else ()))
    assert done.code == 0, done.err
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.float32
    assert np.isfinite(after.get_fdata()).all()
    assert not np.array_equal(after.get_fdata(), before.get_fdata())
    report = report_of(tmp_path / "out.nii.gz")
    noise = report["figures"]["noise"]
    assert noise["law"] == law
    assert noise["whole_counts"] is (law == "poisson")
    for name, true in model.parameters.items() if given or law != "tweedie" else ():
        assert noise[name] == pytest.approx(true, rel=1e-6 if given else 0.5)
    assert len({verdict["name"] for verdict in report["verdicts"]}) >= 5


def test_results_go_to_stdout_and_logs_to_stderr(run: Run, scan: Path, tmp_path: Path) -> None:
    done = run(
        *("denoise", scan, tmp_path / "new" / "folder" / "out.nii.gz", "--sd-map"),
        *("--from-scratch", *TINY, "--orientations", "1", "--threads", 1),
    )
    assert done.code == 0
    stem = tmp_path / "new" / "folder" / "out"
    lines = done.out.splitlines()
    assert lines[0] == "NIfTI, 20x20x20 voxels"
    assert [line.split()[0] for line in lines[1:]] == ["noise", "output", "sd", "report", "trust"]
    assert lines[2] == f"  output  {stem}.nii.gz"
    assert lines[3] == f"  sd map  {stem}.sd.nii.gz"
    assert lines[4] == f"  report  {stem}.report.html"
    assert re.fullmatch(r"  trust   \d of \d checks passed", lines[5])
    assert "training" in done.err
    assert "denoising" in done.err
    assert files_below(stem.parent) == ["out.nii.gz", "out.report.html", "out.report.json", "out.sd.nii.gz"]


def test_base_weights_are_the_default(run: Run, scan: Path, tmp_path: Path) -> None:
    """As they are, or adapted: then the better of both by the clean-free figure is kept, and that is recorded."""
    base = base_model(3)
    common = (*FAST, "--orientations", "1", "--noise", "gaussian", "--sigma", 10)
    done = [
        run("denoise", scan, tmp_path / f"{name}.nii.gz", *common, *options)
        for name, options in (("plain", ("--adapt", 0)), ("adapted", ("--steps", 12, "--set", "patch=16")))
    ]
    assert [d.code for d in done] == [0, 0], done[0].err + done[1].err
    plain, adapted = (report_of(tmp_path / f"{name}.nii.gz")["figures"]["model"] for name in ("plain", "adapted"))
    assert plain["started_from"] is None
    assert plain["training_steps"] == base.card["steps_done"]
    assert adapted["started_from"] == base.centred(0.0).hash
    assert adapted["training_sure"] <= adapted["training_sure_at_start"]
    assert not np.array_equal(values_of(tmp_path / "plain.nii.gz"), values_of(tmp_path / "adapted.nii.gz"))
    assert nib.load(tmp_path / "plain.nii.gz").header["descrip"] != b""


def test_a_model_of_another_objective_is_not_adapted(run: Run, scan: Path, tmp_path: Path) -> None:
    assert train(run, tmp_path / "model", scan, options=["--no-track"]).code == 0
    options = (*FAST, "--noise", "gaussian", "--sigma", 0.5, "--steps", 2, "--model", tmp_path / "model")
    done = run("denoise", scan, tmp_path / "out.nii.gz", *options)
    assert done.code == 1
    assert "Adapt them with objective total-unit-noise" in done.err
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize("told", [True, False])
def test_weights_are_adapted_where_the_level_is_told(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr("n2s_med.jobs.noise.NoiseChoice.level_told", told)
    done = run("denoise", scan, tmp_path / "out.nii.gz", *FAST, "--modality", "ct", "--steps", 2)
    assert done.code == 0
    assert ("weights by, so the model was not adapted" in done.err) != told
    card = json.loads((tmp_path / "out.report.json").read_text())["figures"]["model"]
    assert card["training_steps"] == (2 if told else 0)


def test_a_trained_model_is_used(run: Run, scan: Path, tmp_path: Path) -> None:
    assert train(run, tmp_path / "model", scan, options=["--no-track"]).code == 0
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    for index, model in enumerate((tmp_path / "model", tmp_path / "model" / "model.pt")):
        output = tmp_path / f"out{index}.nii.gz"
        assert denoise(run, scan, output, "--model", model, "--modality", "CT").code == 0
        assert report_of(output)["figures"]["model"]["sha256"] == card["sha256"]
    np.testing.assert_array_equal(values_of(tmp_path / "out0.nii.gz"), values_of(tmp_path / "out1.nii.gz"))


def test_a_dicom_series_gives_a_dicom_series(run: Run, pet: Path, tmp_path: Path) -> None:
    done = denoise(run, pet, tmp_path / "out", "--sd-map")
    assert done.code == 0, done.err
    sources, images = datasets(pet), datasets(tmp_path / "out")
    assert len(images) == len(sources) == 12
    assert {i.SeriesInstanceUID for i in images}.isdisjoint({s.SeriesInstanceUID for s in sources})
    assert {i.StudyInstanceUID for i in images} == {s.StudyInstanceUID for s in sources}
    assert {str(i.PatientName) for i in images} == {"Doe^Jane"}
    assert images[0].ImageType[0] == "DERIVED"
    (before,), (after,) = read(pet).volumes, read(tmp_path / "out").volumes
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
    assert after.meta["units"] == "BQML"
    noise = report_of(tmp_path / "out")["figures"]["noise"]
    assert noise["law"] == "poisson"
    assert 20 < noise["gain"] < 200  # few slices, much structure
    assert (tmp_path / "out.sd.dcm").exists()
    assert float(after.as_tensor().mean()) == pytest.approx(float(before.as_tensor().mean()), rel=0.1)


@pytest.mark.parametrize(("name", "modality"), [("CT_small.dcm", "ct"), ("MR_small.dcm", "mr")])
def test_single_dicom_images(run: Run, tmp_path: Path, name: str, modality: str) -> None:
    source = carried(name, tmp_path / "in")
    done = denoise(run, source, tmp_path / "out", "--sd-map", "--noise", "gaussian")
    assert done.code == 0, done.err
    (before,), (after,) = datasets(source.parent), datasets(tmp_path / "out")
    assert after.pixel_array.shape == before.pixel_array.shape
    assert after.Modality == modality.upper()
    assert list(after.ImagePositionPatient) == list(before.ImagePositionPatient)
    figures = report_of(tmp_path / "out")["figures"]
    assert figures["noise"]["law"] == "gaussian"
    moved = not np.array_equal(after.pixel_array, before.pixel_array)
    assert moved == (figures["clean-free figures"]["step_length"] > 0)  # so few steps may teach too little
    assert (tmp_path / "out.sd.dcm").exists()


def test_one_slice(run: Run, tmp_path: Path) -> None:
    for shape in ((40, 36), (40, 36, 1)):
        name = f"out{len(shape)}.nii.gz"
        source = nifti(tmp_path / "in.nii", noisy(shape=(40, 36)).reshape(shape))
        assert denoise(run, source, tmp_path / name, "--noise", "gaussian").code == 0
        assert values_of(tmp_path / name).shape == shape
    np.testing.assert_array_equal(
        values_of(tmp_path / "out2.nii.gz"), values_of(tmp_path / "out3.nii.gz").reshape(40, 36)
    )


def test_time_points(run: Run, tmp_path: Path) -> None:
    series = np.stack([noisy(Poisson(1.0), seed=s) for s in range(3)], axis=3)
    source = nifti(tmp_path / "in.nii.gz", series)
    done = denoise(run, source, tmp_path / "out.nii.gz", "--sd-map", "--modality", "nm")
    assert done.code == 0, done.err
    assert "3 volumes of 20x20x20" in done.out
    out, sd = values_of(tmp_path / "out.nii.gz"), values_of(tmp_path / "out.sd.nii.gz")
    assert out.shape == sd.shape == series.shape
    assert all(not np.array_equal(out[..., a], out[..., b]) for a, b in ((0, 1), (1, 2)))
    assert (sd > 0).mean() > 0.5
    names = [verdict["name"] for verdict in report_of(tmp_path / "out.nii.gz")["verdicts"]]
    assert names.count("residual mean") == 3


@pytest.mark.parametrize("units", ["meter", "micron", "unknown"])
def test_units_of_the_header_stay(run: Run, tmp_path: Path, units: str) -> None:
    scale = {"meter": 1e-3, "micron": 1e3, "unknown": 1.0}[units]
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]]) * scale
    affine[3, 3] = 1
    source = nifti(tmp_path / "in.nii.gz", affine=affine, units=units)
    assert denoise(run, source, tmp_path / "out.nii.gz", "--noise", "gaussian").code == 0
    out = nib.load(tmp_path / "out.nii.gz")
    assert out.header.get_xyzt_units() == (units, "sec")
    np.testing.assert_allclose(out.affine, affine, rtol=1e-6)
    assert report_of(tmp_path / "out.nii.gz")["volume"]["spacing_mm"] == pytest.approx([1.5, 2, 3])


def test_a_folder_of_scans_gives_a_folder(run: Run, pet: Path, tmp_path: Path) -> None:
    """Names of two scans may be the same in different folders; what cannot be read is told and left out."""
    root = tmp_path / "in"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    nifti(root / "a" / "scan.nii.gz", noisy(seed=1))
    nifti(root / "b" / "scan.nii.gz", noisy(seed=2))
    nifti(root / "b" / "un compressed.NII", noisy(seed=3))
    nifti(root / "b" / "\u00e4\u00f6.nii.gz", noisy(seed=4))
    (root / "b" / "broken.nii.gz").write_bytes(b"no image")
    (root / "notes.txt").write_text("hello")
    shutil.copytree(pet, root / "pet")
    done = denoise(run, root, tmp_path / "out", "--sd-map")
    assert done.code == 0, done.err
    assert "left out: " in done.err
    assert "broken.nii.gz" in done.err
    entries = sorted(p.name for p in (tmp_path / "out").iterdir())
    images = [e for e in entries if e.lower().endswith((".nii", ".nii.gz")) and ".sd." not in e]
    assert len(images) == 4
    assert not [e for e in entries if e.startswith(".")]
    assert sum(e.endswith(".report.html") for e in entries) == 5
    assert sum(".sd." in e for e in entries) == 5
    (series,) = (p for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert len(list(series.iterdir())) == 12
    assert done.out.count("  output  ") == 5
    seen = {values_of(tmp_path / "out" / name).tobytes() for name in images}
    assert len(seen) == 4


def test_names_of_several_scans() -> None:
    """One place each, whatever the files are called; none is hidden."""
    names = ("003_scan.nii", "a/scan.nii", "b/scan.nii.gz", "c/\u5b57.nii", "d/\u5b57.nii")
    sources = [Source(Path(name), "NIfTI", "nifti", lambda: None) for name in names]
    given = names_of([*sources, Source(Path("e"), "CT series", "dicom", lambda: None)])
    assert given[:3] == ["003-scan.nii", "scan.nii", "003_scan.nii.gz"]
    assert given[-1] == "006_CT-series"
    assert len({stem_name(name).lower() for name in given}) == 6
    assert not [name for name in given if name.startswith(".")]


def test_the_report_tells_of_what_is_written(run: Run, tmp_path: Path) -> None:
    """MR magnitude in the noise: the figures are those of the values whose Rician bias is taken off."""
    generator = torch.Generator().manual_seed(0)
    signal = 60 * (blob((24, 24, 24)) > 100)
    magnitude = torch.hypot(*(signal * part + 10 * torch.randn(signal.shape, generator=generator) for part in (1, 0)))
    source = nifti(tmp_path / "in.nii.gz", magnitude.numpy())
    assert denoise(run, source, tmp_path / "out.nii.gz", "--modality", "mr").code == 0
    figures = report_of(tmp_path / "out.nii.gz")["figures"]
    assert figures["noise"]["rician_bias_corrected"]
    written = float(values_of(tmp_path / "out.nii.gz").mean(dtype=np.float64))
    assert figures["quantities"]["mean_after_units"] == pytest.approx(written, rel=1e-6)
    assert {"mean_shift_percent", "maximum_shift_percent"} <= figures["quantities"].keys()
    residual = {"residual_mean_sd", "residual_variance", "residual_neighbour_correlation"}
    assert residual <= figures["clean-free figures"].keys()
    spent = ("training_time_s", "denoising_time_s", "writing_time_s", "peak_memory_mib")
    assert min(figures["resources"][name] for name in spent) > 0


def test_memory_holds_one_scan_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        nifti(tmp_path / f"{index}.nii.gz")
    (tmp_path / "1.nii.gz").write_bytes(b"no image")
    volumes: list[weakref.ref[MetaTensor]] = []
    alive: list[int] = []

    def one(job: DenoiseJob, volume: MetaTensor, *rest: object) -> None:  # noqa: ARG001
        volumes.append(weakref.ref(volume))
        alive.append(sum(other() is not None for other in volumes))

    monkeypatch.setattr(DenoiseJob, "one", one)
    said: list[str] = []
    assert len(list(DenoiseJob(tmp_path, tmp_path.parent / "out").run(said.append))) == 2
    assert alive == [1, 1]
    assert [line.split(":")[0] for line in said] == ["left out"]


def test_the_same_command_twice_gives_the_same(run: Run, pet: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert denoise(run, pet, tmp_path / name, "--seed", 5).code == 0
    for first, second in zip(datasets(tmp_path / "one"), datasets(tmp_path / "two"), strict=True):
        assert first.SOPInstanceUID == second.SOPInstanceUID
        assert first.SeriesInstanceUID == second.SeriesInstanceUID
        assert first.PixelData == second.PixelData
    assert denoise(run, pet, tmp_path / "other", "--seed", 6).code == 0
    assert datasets(tmp_path / "other")[0].SeriesInstanceUID != datasets(tmp_path / "one")[0].SeriesInstanceUID


def test_the_tile_size_does_not_matter(run: Run, scan: Path, tmp_path: Path) -> None:
    for voxels in (4000, 10**6):
        output = tmp_path / f"{voxels}.nii.gz"
        assert denoise(run, scan, output, "--noise", "gaussian", "--chunk-voxels", voxels, "--sd-map").code == 0
    for end in (".nii.gz", ".sd.nii.gz"):
        np.testing.assert_allclose(values_of(tmp_path / f"4000{end}"), values_of(tmp_path / f"1000000{end}"), atol=2e-3)


def test_strict_tells_of_a_failed_check_by_the_exit_code(run: Run, scan: Path, tmp_path: Path) -> None:
    """A level twice too high fails the residual's variance; the output is written all the same."""
    output = tmp_path / "out.nii.gz"
    done = denoise(run, scan, output, "--noise", "gaussian", "--sigma", 30, "--strict")
    assert done.code == 4
    assert output.exists()
    assert "warning: NIfTI, 20x20x20 voxels: residual variance is" in done.err
    assert "error:" not in done.err
    assert denoise(run, scan, output, "--noise", "gaussian", "--sigma", 30, "--overwrite").code == 0


def test_padding_comes_back_as_it_was(run: Run, tmp_path: Path) -> None:
    source = carried("CT_small.dcm", tmp_path / "in")
    (dataset,) = datasets(source.parent)
    dataset.PixelPaddingValue = -2000
    pixels = dataset.pixel_array.copy()
    pixels[:, :40] = -2000
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(source)
    level = ("--noise", "gaussian", "--sigma", 30, "--correlation", "white")
    assert denoise(run, source, tmp_path / "out", *level).code == 0
    (after,) = datasets(tmp_path / "out")
    assert (after.pixel_array[:, :40] == -2000).all()
    assert not np.array_equal(after.pixel_array[:, 40:], pixels[:, 40:])


def test_the_run_can_be_tracked(run: Run, scan: Path, tmp_path: Path, tables: Path) -> None:
    (tmp_path / "store").mkdir()
    shutil.copy(tables, tmp_path / "store")
    done = denoise(run, scan, tmp_path / "out.nii.gz", "--track", tmp_path / "store", "--noise", "gaussian")
    assert done.code == 0, done.err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("n2s-med denoise")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert {"loss", "sure", "risk", "step_sure"} <= set(tracked.data.metrics)
    assert tracked.data.params["steps"] == "4"
    content = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert b"scan.nii" not in content


def test_better_than_the_noise(run: Run, tmp_path: Path) -> None:
    """Four hundred steps on a small scan: closer to the truth, and the figures say by how much."""
    truth = blob((24, 24, 24)).numpy()
    source = nifti(tmp_path / "in.nii.gz", noisy(Gaussian(20.0), shape=(24, 24, 24)))
    output = tmp_path / "out.nii.gz"
    done = denoise(run, source, output, "--noise", "gaussian", "--sigma", 20, "--steps", 60)
    assert done.code == 0
    before, after = (float(np.square(values_of(p) - truth).mean()) for p in (source, output))
    assert after < 0.5 * before
    risk = report_of(output)["figures"]["clean-free figures"]["error_after_in_noise_variances"]
    assert risk == pytest.approx(after / before, abs=0.15)


def test_one_bad_scan_of_several_does_not_stop_the_rest(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    nifti(folder / "a.nii.gz", np.full((20, 20, 20), 5.0, dtype=np.float32))
    nifti(folder / "b.nii.gz")
    done = denoise(run, folder, tmp_path / "out", "--noise", "gaussian", "--sigma", 10)
    assert done.code == 3, done.err
    assert "a.nii.gz" in done.err
    assert "constant" in done.err
    assert "1 of 2 scans failed" in done.err
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]
    assert "b.report.html" in done.out
