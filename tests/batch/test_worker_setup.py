"""What a worker is given and what it shows: a GPU each, a share of the cores, a model that it keeps, its bars."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from batch_scans import OPTIONS, Identity, images
from test_workers import job

from n2s_med.batch.task import work
from n2s_med.score import ScoreModel


@pytest.mark.parametrize(
    ("gpus", "options", "devices", "threads"),
    [
        (3, {}, ["cuda:0", "cuda:1", "cuda:2"], 2),
        (3, {"workers": 2}, ["cuda:0", "cuda:1"], 4),
        (2, {"workers": 4}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], 2),
        (3, {"device": "cpu"}, ["cpu"] * 4, 2),
        (0, {}, ["auto"] * 4, 2),
        (0, {"threads": 8}, ["auto"] * 4, 8),
    ],
)
def test_a_worker_for_each_gpu_or_for_two_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    options: dict[str, object],
    devices: list[str],
    threads: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    given = {"workers": None, "threads": None, "device": "auto"} | options
    recipes = job(Identity, tmp_path, **given)._local_recipes(scans=100)
    assert [recipe.device for recipe in recipes] == devices
    assert {recipe.threads for recipe in recipes} == {threads}


def test_no_more_workers_than_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    recipes = job(Identity, tmp_path, workers=None, threads=None, device="auto")._local_recipes(scans=2)
    assert [recipe.device for recipe in recipes] == ["cuda:0", "cuda:1"]


def test_a_worker_reads_its_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from n2s_med.batch import task

    images(tmp_path / "in")
    batch = job(Identity, tmp_path, job={"from_scratch": False})
    read: list[int] = []
    base_model = task.base_model

    def counted(spatial_dims: int) -> ScoreModel:
        read.append(spatial_dims)
        return base_model(spatial_dims)

    monkeypatch.setattr(task, "base_model", counted)
    task._kept.cache_clear()
    (recipe,) = batch._local_recipes(scans=1)
    outcomes = [work(step.task, recipe) for step in batch.plan()]
    task._kept.cache_clear()
    assert [outcome.reason for outcome in outcomes] == [""] * 3
    assert read == [3]


def test_bars_of_the_batch_and_of_each_scan_on_a_terminal(tmp_path: Path) -> None:
    images(tmp_path / "in", "ab")
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-m", "n2s_med", "batch", tmp_path / "in", tmp_path / "out", "--workers", "1", *OPTIONS]
    process = subprocess.Popen(
        [option for option in [*command, "--noise", "gaussian", "--sigma", "10"] if option != "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    shown = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            shown += os.read(ours, 1 << 16)
    os.close(terminal)
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"batch: 100%" in shown
    assert b"2/2" in shown
    assert b"denoising: " in shown
