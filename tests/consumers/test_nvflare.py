"""A federation of two sites, simulated by NVFlare itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_runs import BUNDLES, run, small_bundle, write_scan

pytest.importorskip("nvflare", reason="NVFlare is not installed: make consumers")

JOB = BUNDLES.parent / "integrations" / "nvflare" / "job.py"
SITES = ("site-1", "site-2")


def job(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the federation's job in a process of its own."""
    bundle = small_bundle("ct_gaussian", folder / "ct_gaussian")
    for seed, site in enumerate(SITES):
        (folder / site).mkdir()
        write_scan("ct_gaussian", folder / site / "scan.nii.gz", seed=seed)
    command = [sys.executable, JOB, "--bundle", bundle, "--data", folder / "%site%", "--work", folder / "work", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=3000)


def weights(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a file; those of a site's checkpoint are the ones that it sent."""
    saved = torch.load(file, weights_only=True)
    return saved.get("model", saved)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_sites_train_together(tmp_path):
    done = job(tmp_path, "--rounds", 2, "--steps_per_epoch", 3, "--patch", 12)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    told = re.findall(r"(site-\d), round (\d): (-?[\d.]+) of the noise variance left", done.stdout + done.stderr)
    figures = {(site, int(number)): float(figure) for site, number, figure in told}
    assert figures.keys() == {(site, number) for site in SITES for number in (0, 1)}
    bundle, work = tmp_path / "ct_gaussian", tmp_path / "work"
    for site in SITES:  # the first figure is that of the bundle's weights, and then the weights are others
        judged = run(
            bundle, "train", "evaluate", dataset_dir=str(tmp_path / site), output_dir=str(work), orientations=1
        )
        assert figures[site, 0] == pytest.approx(judged.evaluator.state.metrics["risk"], abs=1e-4)
        assert figures[site, 1] != figures[site, 0]
    start = weights(bundle / "models" / "model.pt")
    first, last = weights(work / "best.pt"), weights(work / "last.pt")  # of two rounds, only the first's are judged
    sent = [weights(next((work / site / "models").glob("checkpoint_epoch=2.pt"))) for site in SITES]
    mean = {name: sum(state[name] for state in sent) / len(sent) for name in start}
    assert distance(last, mean) < 1e-6
    assert distance(*sent) > 1e-4  # each learned from its own scans
    for one, other in ((start, first), (first, last), (start, last)):
        assert 1e-4 < distance(one, other) < 0.1  # a network made anew is further off than 1


def test_one_round_alone_is_refused_before_anything_is_trained(tmp_path):
    done = job(tmp_path, "--rounds", 1)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--rounds: two at least: what a round gives is judged in the next")
    assert not (tmp_path / "work").exists()


def test_a_job_is_written_for_sites_of_their_own(tmp_path):
    done = job(tmp_path, "--job", tmp_path / "job")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    files = {file.name: file for file in (tmp_path / "job").rglob("*") if file.is_file()}
    assert files.keys() >= {"meta.json", "client.py"}
    assert not distance(weights(files["initial.pt"]), weights(tmp_path / "ct_gaussian" / "models" / "model.pt"))
    assert (
        json.loads(files["config_fed_client.json"].read_text(encoding="utf-8"))["executors"][0]["executor"]["args"][
            "task_script_path"
        ]
        == "client.py"
    )  # of the job, not of this machine
