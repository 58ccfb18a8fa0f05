"""What a bundle must hold, and that it holds no more than differs."""

from __future__ import annotations

import configparser
import json
import logging
from importlib import metadata as installed
from pathlib import Path

import pytest
from bundle_runs import BUNDLES, CONFIGS, DIMS, MODALITY, NAMES
from monai.bundle import verify_metadata

from n2s_med.modalities import MODALITIES

SCHEMA = BUNDLES / "metadata_schema.json"
ALONE_DIFFER = {"modality", "spatial_dims", "patch", "experiment_name", "run_name"}
"""Keys of the configurations that differ from bundle to bundle."""


def content(name: str, config: str) -> dict[str, object]:
    read: dict[str, object] = json.loads((BUNDLES / name / "configs" / f"{config}.json").read_text(encoding="utf-8"))
    return read


def test_every_bundle_is_tested():
    assert {folder.name for folder in BUNDLES.iterdir() if folder.is_dir()} == set(NAMES)


def test_it_is_complete(name):
    files = {str(file.relative_to(BUNDLES / name)) for file in (BUNDLES / name).rglob("*") if file.is_file()}
    wanted = {"LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/logging.conf"}
    assert wanted | {f"configs/{config}.json" for config in CONFIGS} <= files
    assert (BUNDLES / name / "LICENSE").read_bytes() == (BUNDLES.parent / "LICENSE").read_bytes()
    assert not [file for file in files if file.endswith(".py")]


@pytest.mark.parametrize("config", CONFIGS)
def test_it_holds_only_what_differs(name, config):
    first, this = content(NAMES[0], config), content(name, config)
    assert list(first) == list(this)
    assert {key for key in first if first[key] != this[key]} <= ALONE_DIFFER


def test_its_values_are_those_of_its_modality(name):
    for config in ("train", "inference"):
        assert content(name, config)["modality"] == MODALITY[name]
        assert content(name, config)["spatial_dims"] == DIMS[name]
    assert MODALITIES[MODALITY[name]].law == name.split("_")[1]
    tensors = content(name, "metadata")["network_data_format"]
    assert tensors["inputs"]["image"]["modality"] == MODALITIES[MODALITY[name]].dicom
    assert len(tensors["inputs"]["image"]["spatial_shape"]) == DIMS[name]


def test_metadata_is_verified_without_network(name):
    verify_metadata(meta_file=str(BUNDLES / name / "configs" / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_tells_what_a_first_class_bundle_tells(name):
    told = content(name, "metadata")
    wanted = {"version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "name"}
    wanted |= {"task", "description", "authors", "copyright", "schema", "changelog", "references", "data_type"}
    wanted |= {"image_classes", "intended_use", "supported_apps", "network_data_format"}
    assert wanted <= told.keys()
    keys = {"type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range"}
    for tensors in told["network_data_format"].values():
        (tensor,) = tensors.values()
        assert keys | {"is_patch_data", "channel_def"} <= tensor.keys()
        assert set(tensor["spatial_shape"]) == {"32*n"}


def test_logging_needs_no_package(name):
    read = configparser.RawConfigParser()
    read.read(BUNDLES / name / "configs" / "logging.conf")
    classes = [read[section]["class"] for section in read.sections() if "class" in read[section]]
    assert classes
    assert all(hasattr(logging, found) for found in classes)


def test_metadata_that_lacks_a_version_is_refused(tmp_path):
    wrong = content(NAMES[0], "metadata")
    del wrong["version"]
    (tmp_path / "metadata.json").write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(ValueError, match="'version' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_tells_the_versions_that_are_tested(name):
    told = content(name, "metadata")
    pins = dict(
        line.split("==")
        for line in (BUNDLES.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    assert told["version"] in told["changelog"]
    assert told["monai_version"] == pins["monai"]
    assert told["pytorch_version"] == pins["torch"]
    assert told["numpy_version"] == pins["numpy"]
    required = dict(told["required_packages_version"])
    assert required.pop("n2s-med") == installed.version("n2s-med")
    assert required == {package: pins[package] for package in required}


def test_the_card_names_what_a_user_must_know(name):
    card = (BUNDLES / name / "docs" / "README.md").read_text(encoding="utf-8")
    for word in ("research use", "Limits", "Training data", "Figures", "--spatial_dims"):
        assert word in card
    assert not Path(BUNDLES / name / "scripts").exists()
