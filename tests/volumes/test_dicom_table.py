"""The table of readers: what is wrong with a volume is seen as what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_scans import CT, MR, make_enhanced, make_series, pixels

from n2s_med.volumes import read, valid_mask, write

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table() -> Iterator[SimpleNamespace]:
    """The command and its parts, as one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import dicom_table
        from readers import comparison, libraries, made, truth

        parts = (dicom_table, comparison, libraries, made, truth)
        yield SimpleNamespace(**{name: value for part in parts for name, value in vars(part).items()})
    for name in [name for name in sys.modules if name == "dicom_table" or name.partition(".")[0] == "readers"]:
        del sys.modules[name]


def ours(table: SimpleNamespace, path: Path):
    ((values, affine),) = table.ours(path)
    return values, affine, table.truths(path)


@pytest.mark.parametrize("make", ["classic", "enhanced"])
def test_a_right_volume_has_no_error(table, tmp_path, make):
    path = make_series(tmp_path / "s", CT) if make == "classic" else make_enhanced(tmp_path / "e", MR, pixels())
    values, affine, frames = ours(table, path)
    found = table.compare([(values, affine)], frames)
    assert (found.volumes, found.lost, found.is_right(1)) == (1, 0, True)
    assert found.geometry_mm < 1e-9
    assert found.value_percent < 1e-4


def test_each_kind_of_error_is_measured(table, tmp_path):
    values, affine, frames = ours(table, make_series(tmp_path / "s", CT))
    moved = affine.copy()
    moved[2, 3] += 2.5
    assert table.compare([(values, moved)], frames).geometry_mm == pytest.approx(2.5)
    stretched = affine.copy()
    stretched[:3, 2] *= 2
    assert table.compare([(values, stretched)], frames).geometry_mm == pytest.approx(9)
    wrong = table.compare([(values * 1.1, affine)], frames)
    assert wrong.value_percent == pytest.approx(10)
    lost = table.compare([(values[..., 1:], affine)], frames)
    assert lost.lost == 1
    assert not any(found.is_right(1) for found in (wrong, lost))
    assert not table.compare([(values, affine)] * 2, frames).is_right(1)


def test_what_should_be_refused_is_wrong_when_read(table, tmp_path):
    assert table.Outcome(0).cell(0) == "refused"
    assert table.Outcome(2).cell(0) == "**2**"
    assert table.Outcome(0).cell(1) == "**refused**"
    assert table.outcome(table.ours, tmp_path, []) == table.Outcome(0)


@pytest.mark.parametrize(("name", "shape"), [("one slice missing", None), ("dynamic PET, 3 frames", 3)])
def test_made_series_are_what_their_names_say(table, tmp_path, data, name, shape):
    volumes = read(table.make(name, data, tmp_path)).volumes
    assert sum(len(volume) for volume in volumes) == table.MADE[name]
    assert shape is None or volumes[0].shape[0] == shape


def test_numbers_are_short(table):
    assert [table.short(x) for x in (1e-9, 0.0123, 4.5, 123.4)] == ["0", "0.012", "4.5", "123"]


def test_every_readable_single_file_comes_back_unchanged(table, data, tmp_path, provenance):
    """The series in folders are those of the tests of real scans."""
    names = [name for name, right in table.SERIES.items() if right and name.endswith(".dcm")]
    assert len(names) > 10
    for number, name in enumerate(names):
        (volume,) = read(data / name).volumes
        (again,) = read(write(volume, tmp_path / f"{number}", provenance=provenance)).volumes
        np.testing.assert_array_equal(again, volume, err_msg=name)
        np.testing.assert_array_equal(valid_mask(again), valid_mask(volume), err_msg=name)
        np.testing.assert_allclose(again.affine, volume.affine, err_msg=name)
