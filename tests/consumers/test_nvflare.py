"""A federation of two sites, simulated by NVFlare itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_runs import BUNDLES, small_bundle, write_scan

pytest.importorskip("nvflare", reason="NVFlare is not installed: make consumers")

JOB = BUNDLES.parent / "integrations" / "nvflare" / "job.py"


def job(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the federation's job in a process of its own."""
    bundle = small_bundle("ct_gaussian", folder / "ct_gaussian")
    for number in (1, 2):
        (folder / f"site-{number}").mkdir()
        write_scan("ct_gaussian", folder / f"site-{number}" / "scan.nii.gz", seed=number)
    command = [sys.executable, JOB, "--bundle", bundle, "--data", folder / "%site%", "--work", folder / "work", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=3000)


def test_two_sites_train_together(tmp_path):
    done = job(tmp_path, "--rounds", 2, "--steps_per_epoch", 3, "--patch", 12)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    told = re.findall(r"(site-\d), round (\d): (-?[\d.]+) of the noise variance left", done.stdout + done.stderr)
    assert {(site, number) for site, number, _ in told} == {(f"site-{s}", str(r)) for s in (1, 2) for r in (0, 1)}
    assert len({risk for _, number, risk in told if number == "0"}) == 2  # each judges by its own scans
    start = torch.load(tmp_path / "ct_gaussian" / "models" / "model.pt", weights_only=True)
    last = torch.load(tmp_path / "work" / "last.pt", weights_only=True)
    assert last.keys() == start.keys()
    assert any(not torch.equal(torch.as_tensor(last[name]), tensor) for name, tensor in start.items())
    for site in ("site-1", "site-2"):
        assert list((tmp_path / "work" / site / "models").glob("checkpoint_epoch=*.pt"))


def test_a_job_is_written_for_sites_of_their_own(tmp_path):
    done = job(tmp_path, "--job", tmp_path / "job")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert {file.name for file in (tmp_path / "job").rglob("*") if file.is_file()} >= {"meta.json", "client.py"}
