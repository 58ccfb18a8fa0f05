"""Groups of files of a tree, as a batch sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from n2s_med.errors import InputError
from n2s_med.volumes.tree import file_groups


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of two folders with an image each, one of which cannot be listed (root may list any, so it is feigned)."""
    for name in ("locked", "open"):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / name / "scan.nii")
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    return tmp_path


def test_a_folder_that_cannot_be_read_stops_no_other(locked: Path) -> None:
    groups, refusals = file_groups(locked)
    assert [group.files for group in groups] == [(locked / "open" / "scan.nii",)]
    assert [(r.path, r.reason) for r in refusals] == [
        (locked / "locked", "the folder cannot be read (Permission denied)")
    ]


def test_a_folder_that_can_be_listed_and_not_entered_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter any, so it is feigned."""
    for name in ("locked", "open"):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), tmp_path / name / "scan.nii")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    groups, refusals = file_groups(tmp_path)
    assert [group.files for group in groups] == [(tmp_path / "open" / "scan.nii",)]
    assert [r.reason for r in refusals] == ["the folder cannot be read (Permission denied)"]


def test_the_tree_itself_must_be_readable(locked: Path) -> None:
    with pytest.raises(InputError, match=r"locked: the folder cannot be read"):
        file_groups(locked / "locked")
