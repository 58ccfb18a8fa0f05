"""Training base weights by command, small: it resumes, says what it was made of, and makes weights that adapt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_scans import FAST, Run, nifti

from n2s_med import corpus
from n2s_med.score import ScoreModel

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


def test_unreadable_and_constant_scans_are_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    nifti(folder / "good.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    done = run("train-base", folder, "--out", tmp_path / "base", *FAST, *SMALL, "--no-track")
    assert done.code == 0, done.err
    assert "left out" in done.err
    assert "bad.nii.gz" in done.err
