"""A user's first minutes: a new environment, ``pip install .``, a bundle copied elsewhere and run there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_runs import BUNDLES, values_of, write_scan


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The Python of a new environment, with the package installed from a copy of the sources."""
    folder = tmp_path_factory.mktemp("fresh")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(BUNDLES.parent / name, sources)
    shutil.copytree(BUNDLES.parent / "n2s_med", sources / "n2s_med", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pins = ("--constraint", str(BUNDLES.parent / "constraints.txt"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, str(sources)], check=True)
    shutil.rmtree(sources)
    return python


@pytest.mark.parametrize("name", ["ct_gaussian", "us_gamma"])
def test_a_bundle_runs_outside_the_checkout(installed, name, tmp_path):
    bundle = tmp_path / "mine" / name
    shutil.copytree(BUNDLES / name, bundle, ignore=shutil.ignore_patterns("eval", "cache", "data"))
    scan = write_scan(name, tmp_path / "scan.nii.gz")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = ["run", "--config_file", "configs/inference.json", "--dataset_dir", scan, "--orientations", "1"]
    done = subprocess.run(
        [installed, "-m", "monai.bundle", *map(str, words)],
        cwd=bundle,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert values_of(bundle / "eval" / "scan.nii.gz").shape == values_of(scan).shape
