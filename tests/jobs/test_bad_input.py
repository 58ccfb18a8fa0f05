"""Bad input: one line that names file, cause and remedy, the right exit code, and nothing left behind."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from job_scans import (
    FAST,
    Ran,
    Run,
    carried,
    datasets,
    denoise,
    files_below,
    nifti,
    noisy,
    train,
    values_of,
)

from n2s_med.noise import Poisson


def refused(done: Ran, *words: str, code: int = 1) -> None:
    """One line with all these words, and no result."""
    assert done.code == code
    assert done.out == ""
    for word in words:
        assert word in done.error
    assert done.error.endswith((".", "?"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of CT volumes under the Gaussian law; how it was trained does not matter."""
    from n2s_med.score import ScoreModel, ScoreUNet

    path = tmp_path_factory.mktemp("model") / "model.pt"
    ScoreModel(ScoreUNet(3, (4, 8)), modality="ct", law="gaussian").save(path)
    return path


# -- what is no scan -----------------------------------------------------------------------------------


def absent(path: Path) -> Path:
    return path / "absent.nii.gz"


def empty_folder(path: Path) -> Path:
    (path / "folder").mkdir()
    return path / "folder"


def folder_of_texts(path: Path) -> Path:
    (empty_folder(path) / "notes.txt").write_text("no image")
    return path / "folder"


def text(path: Path) -> Path:
    (path / "letter.txt").write_text("no image")
    return path / "letter.txt"


def text_named_nifti(path: Path) -> Path:
    (path / "letter.nii.gz").write_text("no image")
    return path / "letter.nii.gz"


def pair(path: Path) -> Path:
    nib.save(nib.Nifti1Pair(noisy(), np.eye(4)), path / "pair.img")
    return path / "pair.hdr"


def truncated(path: Path) -> Path:
    whole = nifti(path / "cut.nii.gz")
    whole.write_bytes(whole.read_bytes()[:5000])
    return whole


def truncated_dicom(path: Path) -> Path:
    whole = carried("CT_small.dcm", path)
    whole.write_bytes(whole.read_bytes()[:20000])
    return whole


def with_value(value: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        values = noisy()
        values[3, 4, 5] = value
        return nifti(path / "values.nii.gz", values)

    return make


def constant(path: Path) -> Path:
    return nifti(path / "constant.nii.gz", np.full((20, 20, 20), 7.0))


def one_voxel(path: Path) -> Path:
    return nifti(path / "one.nii.gz", noisy(shape=(1, 1, 1)))


def all_padding(path: Path) -> Path:
    file = carried("CT_small.dcm", path)
    (dataset,) = datasets(path)
    dataset.PixelPaddingValue = -2000
    dataset.PixelData = np.full_like(dataset.pixel_array, -2000).tobytes()
    dataset.save_as(file)
    return file


def tiny(path: Path) -> Path:
    return nifti(path / "tiny.nii.gz", noisy(shape=(4, 4, 4)))


BAD = {
    "no such file or folder": absent,
    "holds no NIfTI image and no DICOM": empty_folder,
    "no NIfTI image and no DICOM": folder_of_texts,
    "neither NIfTI nor DICOM": text,
    "images in two files": pair,
    "damaged": text_named_nifti,
    "is damaged": truncated,
    "": truncated_dicom,
    "1 of 8000 voxels are NaN": with_value(float("nan")),
    "1 of 8000 voxels are NaN or infinite": with_value(float("inf")),
    "constant": constant,
    "padding": all_padding,
    "--sigma": tiny,
    "blocks of the volume show noise": one_voxel,
}


@pytest.mark.parametrize("command", ["denoise", "train"])
@pytest.mark.parametrize("cause", BAD, ids=[make.__name__ for make in BAD.values()])
def test_what_is_no_usable_scan(run: Run, tmp_path: Path, cause: str, command: str) -> None:
    (tmp_path / "in").mkdir()
    source = BAD[cause](tmp_path / "in")
    if command == "denoise":
        done = denoise(run, source, tmp_path / "out.nii.gz" if source.name.endswith(".gz") else tmp_path / "out")
    else:
        done = train(run, tmp_path / "out", source)
    refused(done, str(source), cause)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("make", [constant, one_voxel, all_padding], ids=lambda make: make.__name__)
def test_nothing_to_denoise_with_a_level_given(run: Run, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    output = tmp_path / "out.nii.gz" if source.name.endswith(".gz") else tmp_path / "out"
    refused(denoise(run, source, output, "--noise", "gaussian", "--sigma", 5), str(source))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("shape", [(4, 4, 4), (2, 2, 2), (5, 3, 1), (2, 1, 1), (1, 1, 30), (3, 40)], ids=str)
def test_a_volume_smaller_than_the_networks_field_works(run: Run, tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = nifti(tmp_path / "tiny.nii.gz", noisy(shape=shape))
    output = tmp_path / "out.nii.gz"
    done = denoise(run, source, output, "--noise", "gaussian", "--sigma", 10)
    assert done.code == 0, done.err
    assert values_of(output).shape == shape
    assert np.isfinite(values_of(output)).all()


@pytest.mark.parametrize(
    ("law", "given"), [("poisson", True), ("poisson", False), ("gamma", True), ("gamma", False), ("tweedie", True)]
)
def test_negative_values_outside_the_law(run: Run, tmp_path: Path, law: str, given: bool) -> None:
    levels = {"poisson": ["--gain", 1], "gamma": ["--k", 50], "tweedie": ["--power", 1.5, "--dispersion", 1]}
    source = nifti(tmp_path / "scan.nii.gz", noisy() - 120)
    done = denoise(run, source, tmp_path / "out.nii.gz", "--noise", law, *(levels[law] if given else ()))
    refused(done, str(source), "negative", law, "gaussian")
    assert files_below(tmp_path) == ["scan.nii.gz"]


def test_negative_pet_is_taken_as_gaussian_and_told(run: Run, tmp_path: Path) -> None:
    source = nifti(tmp_path / "scan.nii.gz", noisy() - 120)
    done = denoise(run, source, tmp_path / "out.nii.gz", "--modality", "pet")
    assert done.code == 0
    assert "gaussian law was taken" in done.err


# -- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--modality", "mr", "--noise", "gaussian"), ("modality ct", "needs mr")),
        (("--noise", "poisson"), ("noise law gaussian", "needs poisson")),
    ],
)
def test_a_model_of_something_else(
    run: Run, tmp_path: Path, model: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    source = nifti(tmp_path / "scan.nii.gz", noisy(Poisson(1.0)))
    refused(denoise(run, source, tmp_path / "out.nii.gz", "--model", model, *options), str(model), *words)
    assert files_below(tmp_path) == ["scan.nii.gz"]


def test_a_model_of_another_dimension(run: Run, tmp_path: Path, model: Path) -> None:
    source = nifti(tmp_path / "scan.nii.gz", noisy(shape=(40, 40)))
    done = denoise(run, source, tmp_path / "out.nii.gz", "--model", model, "--noise", "gaussian", "--modality", "ct")
    refused(done, str(model), "dimension 3", "needs 2")


@pytest.mark.parametrize("damage", ["absent", "cut", "text", "other", "folder"])
def test_a_damaged_model(run: Run, scan: Path, tmp_path: Path, model: Path, damage: str) -> None:
    bad = tmp_path / "bad.pt"
    if damage == "cut":
        bad.write_bytes(model.read_bytes()[:3000])
    elif damage == "text":
        bad.write_text("no model")
    elif damage == "other":
        torch.save({"weights": torch.zeros(3)}, bad)
    elif damage == "folder":
        bad.mkdir()
    refused(denoise(run, scan, tmp_path / "out.nii.gz", "--model", bad), str(bad), "model")
    assert not (tmp_path / "out.nii.gz").exists()


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "chanels=[4]"), ("'chanels'", "'channels'")),
        (("--set", "patch"), ("KEY=VALUE",)),
        (("--set", "patch=twelve"), ("patch", "twelve")),
        (("--set", "antithetic=maybe"), ("antithetic", "maybe")),
        (("--set", "channels=4"), ("channels",)),
        (("--set", "patch=0"), ("patch", "above zero")),
        (("--seed", "-1"), ("seed", "zero")),
        (("--seconds", "0"), ("seconds", "above zero")),
        (("--seconds", "nan"), ("seconds", "above zero")),
        (("--sigma", "5"), ("--sigma", "--noise")),
        (("--noise", "gaussian", "--gain", "5"), ("gaussian", "--sigma", "--gain")),
        (("--noise", "gaussian", "--sigma", "5", "--k", "5"), ("gaussian", "--sigma", "--k")),
        (("--noise", "tweedie", "--power", "1.5"), ("tweedie", "--dispersion")),
        (("--noise", "cauchy"), ("'cauchy'", "gaussian, poisson, gamma, tweedie")),
        (("--noise", "cauchy", "--sigma", "1"), ("'cauchy'", "gaussian, poisson, gamma, tweedie")),
        (("--device", "cuda:77"), ("cuda:77", "cpu")),
        (("--device", "abacus"), ("abacus", "cpu")),
    ],
    ids=lambda value: " ".join(value),
)
@pytest.mark.parametrize("command", ["denoise", "train"])
def test_options_that_mean_nothing(
    run: Run, tmp_path: Path, command: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """They fail before the input is looked at: there is none."""
    if command == "denoise":
        done = run("denoise", tmp_path / "in.nii", tmp_path / "out.nii", *FAST, *options)
    else:
        done = run("train", tmp_path / "in.nii", "--modality", "ct", "--out", tmp_path / "out", *FAST, *options)
    refused(done, *words, code=2)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"patience_": 12}', ("'patience_'", "'patience'")),
        ('{"patch": -1}', ("patch", "above zero")),
        ("{", ("no readable JSON",)),
        ("[1]", ("no JSON object",)),
        ("[" * 100_000, ("no readable JSON",)),
        (None, ("no readable JSON",)),
    ],
)
def test_bad_configuration_files(
    run: Run, scan: Path, tmp_path: Path, content: str | None, words: tuple[str, ...]
) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    refused(denoise(run, scan, tmp_path / "out.nii", "--config", file), *words, str(file), code=2)


def test_an_unknown_modality(run: Run, scan: Path, tmp_path: Path) -> None:
    words = ("'xray'", "pet, nm, ct, mr, us")
    refused(denoise(run, scan, tmp_path / "out.nii", "--modality", "xray"), *words, code=2)
    refused(train(run, tmp_path / "out", scan, modality="xray"), *words, code=2)
    assert files_below(tmp_path) == ["scan.nii.gz"]


@pytest.mark.parametrize("level", ["-5", "0", "nan", "inf"])
def test_levels_out_of_range(run: Run, scan: Path, tmp_path: Path, level: str) -> None:
    refused(denoise(run, scan, tmp_path / "out.nii", "--noise", "gaussian", f"--sigma={level}"), "sigma", "above zero")


# -- outputs -------------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained or written: the refusal comes first."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done before the output was refused")

    monkeypatch.setattr("n2s_med.jobs.denoise.fit", never)
    monkeypatch.setattr("n2s_med.jobs.train.fit", never)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("there", ["out.nii.gz", "out.sd.nii.gz", "out.report.html", "out.report.json"])
def test_an_output_that_exists(run: Run, scan: Path, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    done = denoise(run, scan, tmp_path / "out.nii.gz", "--sd-map", "--noise", "gaussian")
    refused(done, str(tmp_path / there), "exists already", "--overwrite")
    assert (tmp_path / there).read_text() == "precious"
    assert files_below(tmp_path) == sorted([there, "scan.nii.gz"])


@pytest.mark.usefixtures("no_work")
def test_an_output_series_that_exists(run: Run, pet: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(denoise(run, pet, tmp_path / "out"), str(tmp_path / "out"), "exists already")


@pytest.mark.usefixtures("no_work")
def test_what_is_there_is_of_another_kind(run: Run, scan: Path, pet: Path, tmp_path: Path) -> None:
    """Neither does a file replace a folder, nor a folder a file."""
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "file").write_text("precious")
    refused(denoise(run, scan, tmp_path / "folder.nii.gz", "--overwrite"), "folder.nii.gz", "a folder is there")
    refused(denoise(run, pet, tmp_path / "file", "--overwrite"), str(tmp_path / "file"), "a file is there")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", [".", "new", "new/deep", ".."])
def test_an_output_in_or_around_the_input_folder(
    run: Run, pet: Path, tmp_path: Path, where: str, overwrite: bool
) -> None:
    shutil.copytree(pet, tmp_path / "root" / "scan")
    source = tmp_path / "root" / "scan"
    before = files_below(tmp_path)
    done = denoise(run, source, source / where, *(["--overwrite"] if overwrite else []))
    refused(done, str(source / where), "input", "outside it")
    assert files_below(tmp_path) == before


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("where", [".", "new"])
def test_an_output_in_a_folder_of_several_scans(run: Run, tmp_path: Path, where: str) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        nifti(tmp_path / "in" / f"{name}.nii", noisy(seed=ord(name)))
    done = denoise(run, tmp_path / "in", tmp_path / "in" / where, "--overwrite")
    refused(done, "input", "outside it")
    assert files_below(tmp_path / "in") == ["a.nii", "b.nii"]


@pytest.mark.usefixtures("no_work")
def test_the_input_as_output(run: Run, scan: Path, tmp_path: Path) -> None:
    content = scan.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(scan)
    for output in (scan, tmp_path / "link.nii.gz"):
        refused(denoise(run, scan, output, "--overwrite"), str(output), "input")
    assert scan.read_bytes() == content


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["out", "out.dcm", "out.nii.bz2", "out.gz"])
def test_a_wrong_suffix(run: Run, scan: Path, tmp_path: Path, name: str) -> None:
    refused(denoise(run, scan, tmp_path / name), str(tmp_path / name), ".nii.gz")


@pytest.mark.usefixtures("no_work")
def test_an_output_below_a_file(run: Run, scan: Path) -> None:
    refused(denoise(run, scan, scan / "out.nii.gz"), str(scan / "out.nii.gz"), "not a folder")
    refused(train(run, scan / "out", scan), str(scan / "out"), "not a folder")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "name", ["x" * 300 + ".nii.gz", "x" * 240 + ".nii.gz", "a\0b.nii.gz"], ids=["long", "long with reports", "null"]
)
def test_an_impossible_name(run: Run, scan: Path, tmp_path: Path, name: str) -> None:
    refused(denoise(run, scan, tmp_path / name), "name")


@pytest.mark.usefixtures("no_work")
def test_a_place_that_cannot_be_written(run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    refused(denoise(run, scan, tmp_path / "out.nii.gz"), str(tmp_path / "out.nii.gz"), "denied", "can be written")
    refused(train(run, tmp_path / "out", scan), str(tmp_path / "out"), "denied", "can be written")


FULL = {"no space is left": errno.ENOSPC, "read-only": errno.EROFS, "quota": errno.EDQUOT}


@pytest.mark.parametrize(
    ("what", "cause"),
    [*itertools.product(["nifti", "dicom", "train without store"], FULL), ("train", "no space is left")],
)
def test_a_disk_that_refuses(
    run: Run,
    scan: Path,
    pet: Path,
    tmp_path: Path,
    tables: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
    what: str,
) -> None:
    def refuse(_: object) -> None:
        raise OSError(FULL[cause], os.strerror(FULL[cause]))

    monkeypatch.setattr("os.fsync", refuse)
    out = tmp_path / "out"
    if what == "train":
        out.mkdir()
        shutil.copy(tables, out)
    if what == "nifti":
        refused(denoise(run, scan, tmp_path / "out.nii.gz", "--noise", "gaussian"), "out.nii.gz", cause)
    elif what == "dicom":
        refused(denoise(run, pet, out), str(out), cause)
    else:
        options = ["--no-track"] if "without" in what else []
        refused(train(run, out, scan, options=options), str(out), cause)
        assert not (out / "model.pt").exists()
    assert [f for f in files_below(tmp_path) if not f.startswith("out/ml")] == ["scan.nii.gz"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond four kilobytes: the system refuses in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_refuses_in_the_middle_of_a_file(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "scan.nii"
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    nifti(source, noisy())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
    refused(denoise(run, source, tmp_path / "out.nii", "--noise", "gaussian"), str(tmp_path / "out.nii"), "large")
    assert files_below(tmp_path) == ["scan.nii"]


def test_training_on_scans_of_another_modality(run: Run, pet: Path, tmp_path: Path) -> None:
    done = train(run, tmp_path / "out", pet, modality="ct")
    refused(done, "no ct scan", "--modality")
    assert "it is pet, not ct" in done.err
    assert not (tmp_path / "out").exists()


def test_inspect_refuses_too(run: Run, tmp_path: Path) -> None:
    refused(run("inspect", tmp_path / "absent"), str(tmp_path / "absent"), "no such file")
