"""Inference: the values of the command line, in every format and dimension, with no key passed over."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_runs import (
    BUNDLES,
    MODALITY,
    SMALL,
    cause,
    network_of,
    run,
    small_bundle,
    values_of,
    workflow,
    write_scan,
)
from monai.data import MetaTensor

from n2s_med.bundle import EstimateNoised, LoadScand, TweedieInferer, denoising, score_network, weights_of
from n2s_med.cli import main
from n2s_med.errors import ConfigurationError, InputError, ModelError, OutputError
from n2s_med.phantoms import pet_phantom, write_pet_series
from n2s_med.score import ScoreModel

FAST = {"precision": "fp32", "orientations": 1}


def by_command_line(source: Path, output: Path, dims: int, modality: str, *options: str) -> Path:
    """What ``n2s-med denoise`` makes of a scan with the network of :func:`small_bundle`."""
    model = output.parent / "same.pt"
    ScoreModel(network_of(dims)).save(model)
    words = ["denoise", source, output, "--model", model, "--modality", modality, "--precision", "fp32", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*words, "--orientations", "1", "--threads", "1", *options)])
    assert ended.value.code == 0
    return output


@pytest.mark.parametrize("dims", [2, 3])
def test_values_are_those_of_the_command_line(name, dims, tmp_path):
    bundle = small_bundle(name, tmp_path / name)
    torch.save(network_of(dims).state_dict(), bundle / "models" / "model.pt")
    scan = write_scan(name, tmp_path / "scan.nii.gz", dims=dims)
    run(bundle, "inference", kind="infer", dataset_dir=str(scan), spatial_dims=dims, **FAST)
    expected = by_command_line(scan, tmp_path / "expected.nii.gz", dims, MODALITY[name])
    assert np.array_equal(values_of(bundle / "eval" / "scan.nii.gz"), values_of(expected))
    assert (bundle / "eval" / "scan.report.html").exists()


def test_a_dicom_series_comes_back_as_the_command_line_gives_it(tmp_path):
    bundle = small_bundle("pet_poisson", tmp_path / "pet")
    series = tmp_path / "series"
    activity = pet_phantom((24, 24, 12), (7.0, 7.0, 7.0)).activity
    counts = torch.poisson(activity.clamp_min(0) / 50, generator=torch.Generator().manual_seed(3))
    write_pet_series(counts * 50, series, spacing_mm=(7.0, 7.0, 7.0), gain=50.0)
    run(bundle, "inference", kind="infer", dataset_dir=str(series), **FAST)
    expected = by_command_line(series, tmp_path / "expected", 3, "pet")
    (output,) = (folder for folder in (bundle / "eval").iterdir() if folder.is_dir())
    slices = [sorted(pydicom.dcmread(f).PixelData for f in folder.iterdir()) for folder in (output, expected)]
    assert len(slices[0]) == 12
    assert slices[0] == slices[1]


def test_adaptation_is_that_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("n2s_med.jobs.noise.NoiseChoice.level_told", True)  # of so small a scan it is not
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    keys = {"steps": 3, "patch": 12, "checks": 1}
    run(bundle, "inference", kind="infer", dataset_dir=str(scan), adaptation=keys, **FAST)
    told = [word for key in ("patch", "checks") for word in ("--set", f"{key}={keys[key]}")]
    expected = by_command_line(scan, tmp_path / "expected.nii.gz", 3, "ct", "--steps", "3", *told)
    assert np.array_equal(values_of(bundle / "eval" / "scan.nii.gz"), values_of(expected))
    report = json.loads((bundle / "eval" / "scan.report.json").read_text(encoding="utf-8"))
    assert report["figures"]["model"]["training_steps"] == 3


def test_several_scans_of_one_name_do_not_overwrite_each_other(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    for seed in (1, 2):
        (tmp_path / "data" / str(seed)).mkdir(parents=True)
        write_scan("ct_gaussian", tmp_path / "data" / str(seed) / "scan.nii.gz", seed=seed)
    run(bundle, "inference", kind="infer", dataset_dir=str(tmp_path / "data" / "*"), **FAST)
    assert {f.name for f in (bundle / "eval").glob("*.nii.gz")} == {"scan.nii.gz", "002_scan.nii.gz"}
    with pytest.raises(Exception) as refused:  # noqa: PT011  # MONAI wraps it
        run(bundle, "inference", kind="infer", dataset_dir=str(tmp_path / "data" / "*"), **FAST)
    assert isinstance(cause(refused.value), OutputError)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("dataset_dri", "dataset_dir"),
        ("evaluator#networc", "evaluator#network"),
        ("dataset#transfrom", "dataset#transform"),
        ("epochs", None),
    ],
)
def test_a_misspelt_key_is_refused_before_anything_is_read(key, near, tmp_path, caplog):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    with pytest.raises(RuntimeError) as refused:
        workflow(bundle, "inference", kind="infer", dataset_dir="/nowhere", **{key: 1})
    error = cause(refused.value)
    assert isinstance(error, ConfigurationError)
    assert repr(key.replace("#", "::")) in str(error) or repr(key) in str(error)
    if near:
        assert repr(near.replace("#", "::")) in str(error) or repr(near) in str(error)
    assert str(error) in caplog.text


@pytest.mark.parametrize("word", ["false", "true", "off"])
def test_a_word_for_a_truth_value_is_refused(word, tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    with pytest.raises(RuntimeError) as refused:
        workflow(bundle, "inference", kind="infer", dataset_dir="/nowhere", sd_map=word)
    assert str(cause(refused.value)) == f"--sd_map {word} is no truth value. Write --sd_map True or False."
    workflow(bundle, "inference", kind="infer", dataset_dir="/nowhere", overwrite="$not @sd_map")


def test_a_key_of_ones_own_is_taken_where_something_refers_to_it(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    made = workflow(bundle, "inference", kind="infer", dataset_dir="/nowhere", site="a", output_dir="$'/out/' + @site")
    assert made.parser.get_parsed_content("output_dir") == "/out/a"


def test_base_weights_stand_in_for_weights_that_are_not_there(tmp_path, monkeypatch):
    from n2s_med.bundle import network

    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    monkeypatch.setattr(network, "PACKAGED", tmp_path / "packaged")
    own = bundle / "models" / "model.pt"
    assert network.weights_of(str(bundle), 3) == str(own)
    assert network.weights_of(str(bundle), 2) == str(tmp_path / "packaged" / "base-2d" / "model.pt")
    own.unlink()
    assert network.weights_of(str(bundle), 3) == str(tmp_path / "packaged" / "base-3d" / "model.pt")


def test_weights_of_another_kind_are_refused(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    own = str(bundle / "models" / "model.pt")
    with pytest.raises(ConfigurationError, match="chanels"):
        score_network(3, {"chanels": [4]}, own)
    with pytest.raises(ModelError, match="2 dimensions"):
        score_network(2, SMALL, own)
    with pytest.raises(ModelError, match="no such model file"):
        score_network(3, SMALL, str(tmp_path / "missing.pt"))
    ScoreModel(network_of(3), scale=1.25).save(tmp_path / "scaled.pt")
    with pytest.raises(ModelError, match="factor"):
        score_network(3, SMALL, str(tmp_path / "scaled.pt"))


def test_a_scan_of_another_modality_is_refused_by_name(tmp_path):
    volume = LoadScand("image")({"image": str(write_scan("mr_gaussian", tmp_path / "mr.nii.gz"))})
    volume["image"].meta["modality"] = "mr"
    with pytest.raises(InputError, match=r"mr\.nii\.gz: it is mr, the bundle is for ct"):
        EstimateNoised("image", "ct")(volume)


def test_the_inferer_gives_what_is_written_rician_bias_corrected(tmp_path):
    bundle = small_bundle("mr_gaussian", tmp_path / "mr")
    generator = torch.Generator().manual_seed(0)
    signal = torch.zeros(28, 24, 20)
    signal[8:20, 8:16, 6:14] = 40.0
    real, imaginary = (
        signal + 10 * torch.randn(signal.shape, generator=generator),
        10 * torch.randn(signal.shape, generator=generator),
    )
    nib.save(nib.Nifti1Image(torch.hypot(real, imaginary).numpy(), np.eye(4)), tmp_path / "mr.nii.gz")
    for rician in ("auto", "off"):
        keys = {"dataset_dir": str(tmp_path / "mr.nii.gz"), "rician": rician, "overwrite": True}
        made = run(bundle, "inference", kind="infer", **keys, **FAST)
        given = made.evaluator.state.output["pred"][0, 0]
        assert np.array_equal(given.numpy(), values_of(bundle / "eval" / "mr.nii.gz"))
        if rician == "auto":
            corrected = given
    assert float(corrected.mean()) < float(given.mean())


def test_an_image_without_its_noise_is_refused():
    inferer = TweedieInferer(denoising("ct", "/nowhere", device="cpu"))
    with pytest.raises(InputError, match="EstimateNoised"):
        inferer(MetaTensor(torch.zeros(1, 1, 8, 8, 8)), network_of(3))
    with pytest.raises(ModelError, match="ScoreUNet"):
        inferer(MetaTensor(torch.zeros(1, 1, 8, 8, 8)), torch.nn.Identity())


@pytest.mark.parametrize("dims", [2, 3])
def test_shipped_bundles_find_weights_that_fit(name, dims):
    file = weights_of(str(BUNDLES / name), dims)
    assert score_network(dims, {}, file).spatial_dims == dims
