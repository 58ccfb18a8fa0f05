"""Training base weights by command, small: it resumes, says what it was made of, and makes weights that adapt."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from job_scans import FAST, Run, nifti

from n2s_med import corpus
from n2s_med.score import ScoreModel
from n2s_med.training import Trainer

CONFIG = Path(__file__).parents[2] / "configs" / "base-3d.json"
SMALL = ("--config", CONFIG, "--set", "channels=[4,8]", "--set", "patch=12", "--steps", 4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "EDGE", 24)
    monkeypatch.setattr(corpus, "HELD_OUT_EDGE", 16)
    monkeypatch.setattr(corpus, "POOL", 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_and_their_card(run: Run, tmp_path: Path, dims: int) -> None:
    scan = nifti(tmp_path / "scan.nii.gz")
    out = tmp_path / "base"
    options = (*FAST, *SMALL, "--set", "checks=2", "--dims", dims, "--attribution", "somewhere, CC BY")
    done = run("train-base", scan, "--out", out, *options)
    assert done.code == 0, done.err
    model, card = ScoreModel.load(out), json.loads((out / "card.json").read_text())
    assert (model.scale, model.modality, model.law, model.network.spatial_dims) == (1.0, "any", "any", dims)
    assert card["sha256"] == model.hash
    assert card["attribution"] == "somewhere, CC BY"
    page = (out / "MODEL_CARD.md").read_text()
    assert all(words in page for words in (model.hash, "somewhere, CC BY", "Not for diagnosis", "4 steps, 16 patches"))
    assert len(card["scans_sha256"]) + len(card["held_out_sha256"]) == 1
    assert card["config"]["objective"] == "total-unit-noise"
    assert not (out / "checkpoint.pt").exists()
    assert run("train-base", scan, "--out", out, *options).code == 1
    again = tmp_path / "again"
    assert run("train-base", scan, "--out", again, *options, "--no-track").code == 0
    assert ScoreModel.load(again).hash == model.hash


def test_weights_of_a_teacher(run: Run, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    options = (*FAST, *SMALL, "--set", "checks=2", "--no-track")
    assert run("train-base", "--out", teacher, *options).code == 0
    done = run("train-base", "--start", teacher, "--teacher", teacher, "--out", out, *options)
    assert done.code == 0, done.err
    name, card = ScoreModel.load(teacher).hash, json.loads((out / "card.json").read_text())
    assert (card["taught_by"], card["started_from"], card["teacher"]["steps_done"]) == (name, name, 4)
    page = (out / "MODEL_CARD.md").read_text()
    assert f"| teacher | SHA-256 {name}" in page
    assert f"4 steps from weights with SHA-256 {name}" in page
    assert "train-base SCANS --start DIR --teacher DIR" in page


@pytest.mark.parametrize("role", ["--start", "--teacher"])
def test_a_model_of_slices_is_none_for_volumes(run: Run, tmp_path: Path, role: str) -> None:
    refused = run("train-base", role, "base-2d", "--out", tmp_path / "out", *FAST, *SMALL, "--no-track")
    assert refused.code == 1
    assert "dimension 2, the scan needs 3" in refused.err


def test_weights_to_start_from_keep_their_channels(run: Run, tmp_path: Path) -> None:
    refused = run("train-base", "--start", "base-3d-small", "--out", tmp_path / "out", *FAST, *SMALL, "--no-track")
    assert refused.code == 2
    assert "channels (8, 32, 64), not (4, 8)" in refused.err


def test_unreadable_and_constant_scans_are_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    nifti(folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    done = run("train-base", folder, "--out", tmp_path / "base", *FAST, *SMALL, "--no-track")
    assert done.code == 0, done.err
    assert "left out" in done.err
    assert "bad.nii.gz" in done.err


def test_stopped_and_started_again_in_the_same_tracked_run(
    run: Run, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, one_step = tmp_path / "base", Trainer._one_step
    out.mkdir()
    shutil.copy(tables, out)

    def stopped(self: Trainer, network: Any, optimizer: Any, step: int) -> float:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return one_step(self, network, optimizer, step)

    monkeypatch.setattr(Trainer, "_one_step", stopped)
    command = ("train-base", "--out", out, *FAST, *SMALL, "--set", "checks=2")
    assert run(*command).code == 143
    note = json.loads((out / "run.json").read_text())
    assert (out / "checkpoint.pt").exists()
    monkeypatch.setattr(Trainer, "_one_step", one_step)
    done = run(*command)
    assert done.code == 0, done.err
    assert not (out / "run.json").exists()
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("n2s-med train-base")
    (finished,) = client.search_runs([experiment.experiment_id])
    assert (finished.info.run_id, finished.info.status) == (note["run_id"], "FINISHED")


def test_nothing_is_replaced_before_the_scans_are_read(run: Run, tmp_path: Path) -> None:
    out, scan = tmp_path / "base", nifti(tmp_path / "scan.nii.gz")
    options = ("--out", out, *FAST, *SMALL, "--no-track")
    assert run("train-base", scan, *options).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert set(before) == {"model.pt", "card.json", "MODEL_CARD.md"}
    assert run("train-base", tmp_path / "gone.nii", *options, "--overwrite").code == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
