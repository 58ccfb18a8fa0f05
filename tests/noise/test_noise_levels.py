"""The table of blind estimates: its rows, and a score's methods in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def noise_levels() -> Iterator[ModuleType]:
    pytest.importorskip("bm4d")
    before, threads = set(sys.modules), torch.get_num_threads()
    sys.path.insert(0, str(BENCHMARKS))
    import noise_levels

    yield noise_levels
    sys.path.remove(str(BENCHMARKS))
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_table_of_levels(noise_levels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shades = np.kron(np.linspace(100, 400, 8).reshape(2, 2, 2), np.ones((16, 16, 16)))
    nib.save(nib.Nifti1Image(shades, np.eye(4)), tmp_path / "shades.nii.gz")
    out = tmp_path / "levels.md"
    command = ["--phantom", "--volume", str(tmp_path / "shades.nii.gz"), "--seeds", "2", "--out", str(out)]
    assert noise_levels.main([*command, "--cases", "g25", "p05", "s25", "--score-steps", "2"]) == 0
    lines = [line.split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    rows = {cells[0].strip("| "): cells for cells in lines[2:]}
    level = float(rows["G σ=25"][1].split(" ±")[0])
    assert level == pytest.approx(1, abs=0.05)
    assert rows["Poisson .05"][2] == "exact"
    assert rows["correlated in plane 25"][4] == "0.58/0.58/0.00"
    assert rows["correlated in plane 25"][-1].strip("| ") == "–"  # the published methods know white noise alone
    assert rows["G σ=25"][-1].strip("| ") != "–"
