"""Which scans a bundle takes: folders, files, patterns, lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundle_runs import write_scan

from n2s_med.bundle import LoadScand, scan_items
from n2s_med.errors import ConfigurationError, InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two scans in folders, and a list of them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_scan("us_gamma", tmp_path / name / f"{name}.nii.gz")
    sections = {
        "name": "a list",
        "training": [{"image": "a/a.nii.gz", "label": "labels/a.nii.gz"}],
        "test": ["b/b.nii.gz"],
    }
    (tmp_path / "list.json").write_text(json.dumps(sections), encoding="utf-8")
    return tmp_path


def names(items) -> list[str]:
    return [item["image"].path.name for item in items]


def test_a_folder_a_file_and_a_pattern(data):
    assert names(scan_items(str(data))) == ["a.nii.gz", "b.nii.gz"]
    assert names(scan_items(str(data / "b" / "b.nii.gz"))) == ["b.nii.gz"]
    assert names(scan_items(str(data / "*" / "a*"))) == ["a.nii.gz"]


def test_a_list_and_its_sections(data):
    assert names(scan_items(str(data / "list.json"))) == ["a.nii.gz", "b.nii.gz"]
    assert names(scan_items(str(data / "list.json"), "training")) == ["a.nii.gz"]
    assert names(scan_items(str(data / "list.json"), "validation", "test")) == ["b.nii.gz"]
    with pytest.raises(ConfigurationError, match=r"list\.json: the list names no scans.*validation"):
        scan_items(str(data / "list.json"), "validation")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"image": "a/a.nii.gz", "referense": "b/b.nii.gz"}], "did you mean 'reference'"),
        ([{"reference": "a/a.nii.gz"}], "names no image"),
        ([{"image": "."}], "2 scans here"),
        ([{"image": "c.nii.gz"}], "no such file"),
        ([], "names no scans"),
    ],
)
def test_a_wrong_list_is_refused(data, rows, told):
    (data / "list.json").write_text(json.dumps({"training": rows}), encoding="utf-8")
    with pytest.raises((ConfigurationError, InputError), match="(?i)" + told):
        scan_items(str(data / "list.json"))


def test_what_is_not_there_or_no_list_is_refused(data):
    with pytest.raises(InputError, match="nothing matches"):
        scan_items(str(data / "*.nii"))
    with pytest.raises(InputError, match="no such file"):
        scan_items(str(data / "missing"))
    (data / "list.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="no readable JSON"):
        scan_items(str(data / "list.json"))


def test_a_path_with_several_scans_is_no_item(data):
    with pytest.raises(InputError, match="2 scans here"):
        LoadScand("image")({"image": str(data)})
