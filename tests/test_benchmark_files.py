"""The benchmark of reading and writing measures what it names."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_way_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import files

    packed, reading, writing = files.costs(edge=24, slices=12)
    assert packed.what.startswith("write .nii.gz")
    assert (reading.what, writing.what) == ("read 12 DICOM slices, × pydicom", "write 12 DICOM slices, × pydicom")
    assert min(cost.cpu_s for cost in (packed, reading, writing)) > 0
    assert 0.5 < packed.bytes_ratio < 1.5
    assert writing.bytes_ratio > 0.5
