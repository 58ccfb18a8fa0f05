"""Training, from the command line to the model: what it leaves, how it goes on, what is tracked."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from job_scans import DOE, FAST, TINY, Run, carried, denoise, files_below, nifti, noisy, train, values_of

from n2s_med.compute import Compute
from n2s_med.jobs.train import TrainJob
from n2s_med.noise import Gaussian
from n2s_med.score import ScoreModel
from n2s_med.training import Trainer, TrainingConfig

STEPS = ("--steps", "40")
"""Twenty checks: a checkpoint every second step."""


@pytest.fixture
def out(tmp_path: Path, tables: Path) -> Path:
    """A folder for the model, with an empty store."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(tables, folder)
    return folder


def tracked(folder: Path) -> list[Any]:
    """The runs in the store of a folder."""
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("n2s-med train")
    return list(client.search_runs([experiment.experiment_id]))


def no_store(folder: Path) -> list[str]:
    """What a training leaves besides the store."""
    return [name for name in files_below(folder) if not name.startswith("ml")]


# -- what it leaves ------------------------------------------------------------------------------------


def test_a_mix_of_files_and_folders(run: Run, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    nifti(folder / "Doe_Jane.nii.gz", noisy(seed=1))
    nifti(folder / "below" / "b.nii", noisy(shape=(16, 22, 12), seed=2))
    nifti(folder / "slice.nii", noisy(shape=(40, 40)))
    (folder / "broken.nii").write_text("no image")
    carried("MR_small.dcm", folder)
    single = nifti(tmp_path / "c.nii.gz", noisy(Gaussian(5.0), seed=3))
    done = train(run, out, folder, single, options=["--noise", "gaussian"])
    assert done.code == 0, done.err
    assert no_store(out) == ["card.json", "model.pt"]
    for words in ("it is mr, not ct", "single slices and volumes", "broken.nii"):
        assert words in done.err
    card = json.loads((out / "card.json").read_text())
    model = ScoreModel.load(out)
    assert (model.modality, model.law, card["sha256"]) == ("ct", "gaussian", model.hash)
    assert len(card["data_sha256"]) == len(card["laws"]) == 3
    assert card["config"]["channels"] == [4, 8]
    assert card["steps"] == card["steps_done"] == 4
    assert done.out.splitlines()[0] == f"model   {out / 'model.pt'}"
    assert "steps   4 of 4, best at" in done.out
    assert str(tmp_path) not in json.dumps(card)
    (finished,) = tracked(out)
    assert finished.info.status == "FINISHED"
    assert {"loss", "sure", "final_risk"} <= set(finished.data.metrics)
    assert finished.data.params["channels"] == "(4, 8)"
    assert finished.data.params["data.0"] == card["data_sha256"][0]
    names = files_below(out)
    assert any(name.endswith("pictures/first_scan.png") for name in names)
    assert any(name.endswith("MLmodel") for name in names)
    content = b"".join((out / name).read_bytes() for name in names)
    for secret in (*DOE.values(), "Doe_Jane", "c.nii.gz", str(folder)):
        assert secret.encode() not in content


def test_no_track_leaves_no_store(run: Run, scan: Path, tmp_path: Path) -> None:
    assert train(run, tmp_path / "out", scan, options=["--no-track"]).code == 0
    assert files_below(tmp_path / "out") == ["card.json", "model.pt"]


def test_a_model_of_single_slices(run: Run, tmp_path: Path) -> None:
    options = ["--noise", "gaussian", "--no-track"]
    sources = [nifti(tmp_path / f"{s}.nii", noisy(shape=(40, 36 + s), seed=s)) for s in range(2)]
    assert train(run, tmp_path / "out", *sources, options=options).code == 0
    assert ScoreModel.load(tmp_path / "out").network.spatial_dims == 2
    again = ("--model", tmp_path / "out", "--noise", "gaussian", "--modality", "ct")
    assert denoise(run, sources[0], tmp_path / "x.nii", *again).code == 0
    assert values_of(tmp_path / "x.nii").shape == (40, 36)


def test_a_configuration_file_and_its_overrides(run: Run, scan: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"channels": [3, 5], "patch": 9, "steps": 2, "seed": 7, "ema": 0.5}')
    options = ("--modality", "ct", "--out", tmp_path / "out", *FAST, "--no-track")
    done = run("train", scan, *options, "--config", keys, "--set", "patch=10", "--steps", 3)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "card.json").read_text())["config"]
    told = {key: config[key] for key in ("channels", "patch", "steps", "seed", "ema")}
    assert told == {"channels": [3, 5], "patch": 10, "steps": 3, "seed": 7, "ema": 0.5}


def test_a_time_budget(run: Run, scan: Path, tmp_path: Path) -> None:
    options = ("--modality", "ct", "--out", tmp_path / "out", *FAST, "--no-track", "--set", "channels=[3]")
    assert run("train", scan, *options, "--seconds", 0.2, "--set", "patch=8").code == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["steps"] >= 12  # a check each


def test_a_scan_without_noise_does_not_stop_the_others(run: Run, scan: Path, tmp_path: Path) -> None:
    constant = nifti(tmp_path / "constant.nii", noisy() * 0)
    done = train(run, tmp_path / "out", constant, scan, options=["--no-track"])
    assert done.code == 0, done.err
    assert f"left out: {constant}" in done.err
    assert len(json.loads((tmp_path / "out" / "card.json").read_text())["data_sha256"]) == 1


# -- what is there already -----------------------------------------------------------------------------


def test_a_model_that_exists_is_not_replaced(run: Run, scan: Path, tmp_path: Path) -> None:
    options = ["--no-track"]
    assert train(run, tmp_path / "out", scan, options=options).code == 0
    content = (tmp_path / "out" / "model.pt").read_bytes()
    done = train(run, tmp_path / "out", scan, options=[*options, "--seed", 2])
    assert done.code == 1
    assert f"{tmp_path / 'out'}: there is a model already" in done.error
    assert "--overwrite" in done.error
    broken = nifti(tmp_path / "constant.nii", noisy() * 0)
    assert train(run, tmp_path / "out", broken, options=[*options, "--overwrite"]).code == 1
    assert (tmp_path / "out" / "model.pt").read_bytes() == content
    assert train(run, tmp_path / "out", scan, options=[*options, "--seed", 2, "--overwrite"]).code == 0
    assert (tmp_path / "out" / "model.pt").read_bytes() != content


# -- killed and started again --------------------------------------------------------------------------

KILLED = """
import os, signal
from n2s_med.cli import main
from n2s_med.training import Trainer
one_step = Trainer._one_step

def killed(self, network, optimizer, step):
    if step == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return one_step(self, network, optimizer, step)

Trainer._one_step = killed
main()
"""


def signalled(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, at_step: int) -> Callable[[], None]:
    """Let training be signalled before a step; returns what undoes that."""
    one_step = Trainer._one_step

    def step(self: Trainer, network: Any, optimizer: Any, step: int) -> float:
        if step == at_step:
            signal.raise_signal(number)
        return one_step(self, network, optimizer, step)

    monkeypatch.setattr(Trainer, "_one_step", step)
    return lambda: monkeypatch.setattr(Trainer, "_one_step", one_step)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A scan, and the hash of the model that an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scan = nifti(folder / "scan.nii.gz")
    job = TrainJob(
        inputs=[scan],
        out=folder / "out",
        modality="ct",
        config=TrainingConfig(steps=40, patch=12, channels=(4, 8)),
        compute=Compute.choose("cpu", "fp32"),
        track=False,
        quiet=True,
    )
    torch.set_num_threads(1)
    return scan, job.run(lambda _: None).hash


def test_killed_outright_and_started_again(run: Run, undisturbed: tuple[Path, str], out: Path) -> None:
    """Kill -9 in another process, the rest in this one: the same weights, in the same tracked run."""
    scan, wanted = undisturbed
    command = ("train", scan, "--modality", "ct", "--out", out, *FAST, *TINY, *STEPS)
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    assert no_store(out) == ["checkpoint.pt", "run.json"]
    (left,) = tracked(out)
    assert left.info.status == "RUNNING"
    done = train(run, out, scan, options=STEPS)
    assert done.code == 0, done.err
    assert json.loads((out / "card.json").read_text())["sha256"] == ScoreModel.load(out).hash == wanted
    assert no_store(out) == ["card.json", "model.pt"]
    (finished,) = tracked(out)
    assert finished.info.run_id == left.info.run_id
    assert finished.info.status == "FINISHED"
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    steps = [m.step for m in client.get_metric_history(finished.info.run_id, "loss")]
    assert sorted(set(steps)) == [*range(3, 40, 3), 40]


def test_a_time_budget_is_taken_up_with_the_steps_it_had(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the first check, when nothing is known yet but how many steps fit."""
    command = ("train", scan, "--modality", "ct", "--out", tmp_path / "out", *FAST, "--no-track", "--seconds", 0.3)
    keys = ("--set", "channels=[3]", "--set", "patch=8")
    monkeypatch.setattr(Trainer, "_steps_in_budget", lambda _: 17)
    undo = signalled(monkeypatch, signal.SIGINT, at_step=0)
    assert run(*command, *keys).code == 130
    undo()
    monkeypatch.setattr(Trainer, "_steps_in_budget", lambda _: 23)
    done = run(*command, *keys)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "card.json").read_text())["steps"] == 17


def test_killed_when_the_model_is_there_already(
    run: Run, undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, wanted = undisturbed
    show = TrainJob._show
    monkeypatch.setattr(TrainJob, "_show", lambda *_: signal.raise_signal(signal.SIGINT))
    options = [*STEPS, "--no-track"]
    assert train(run, tmp_path / "out", scan, options=options).code == 130
    assert files_below(tmp_path / "out") == ["card.json", "checkpoint.pt", "model.pt"]
    monkeypatch.setattr(TrainJob, "_show", show)
    done = train(run, tmp_path / "out", scan, options=options)
    assert done.code == 0, done.err
    assert ScoreModel.load(tmp_path / "out").hash == wanted
    assert files_below(tmp_path / "out") == ["card.json", "model.pt"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_and_started_again(
    run: Run,
    undisturbed: tuple[Path, str],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    scan, wanted = undisturbed
    undo = signalled(monkeypatch, number, at_step=13)
    stopped = train(run, out, scan, options=STEPS)
    assert stopped.code == code
    assert stopped.out == ""
    assert "Traceback" not in stopped.err
    assert no_store(out) == ["checkpoint.pt", "run.json"]
    assert [r.info.status for r in tracked(out)] == ["KILLED"]
    undo()
    assert train(run, out, scan, options=STEPS).code == 0
    assert ScoreModel.load(out).hash == wanted
    assert [r.info.status for r in tracked(out)] == ["FINISHED"]


def test_an_interrupted_run_of_other_data_or_keys_does_not_go_on(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    undo = signalled(monkeypatch, signal.SIGINT, at_step=5)
    assert train(run, folder, scan, options=[*STEPS, "--no-track"]).code == 130
    undo()
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    other = nifti(tmp_path / "other.nii.gz", noisy(seed=9))
    for inputs, options in ([[other], []], [[scan, other], []], [[scan], ["--set", "ema=0.5"]]):
        done = train(run, folder, *inputs, options=[*STEPS, "--no-track", *options])
        assert done.code == 1
        assert f"{folder / 'checkpoint.pt'}: the checkpoint belongs to other scans, other" in done.error
        assert (folder / "checkpoint.pt").read_bytes() == checkpoint
    (folder / "checkpoint.pt").write_bytes(checkpoint[:1000])
    done = train(run, folder, scan, options=[*STEPS, "--no-track"])
    assert done.code == 1
    assert str(folder / "checkpoint.pt") in done.error
    assert "--overwrite" in done.error
    assert train(run, folder, scan, options=[*STEPS, "--no-track", "--overwrite"]).code == 0


def test_a_damaged_note_of_the_tracked_run_starts_a_new_one(run: Run, scan: Path, out: Path) -> None:
    (out / "run.json").write_text("{")
    done = train(run, out, scan)
    assert done.code == 0, done.err
    assert no_store(out) == ["card.json", "model.pt"]


# -- servers -------------------------------------------------------------------------------------------


def test_a_dead_server_is_told_in_one_line(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    done = train(run, tmp_path / "out", scan)
    assert done.code == 1
    assert done.out == ""
    assert "the server does not answer" in done.error
    assert "secret" not in done.error
    assert "--no-track" in done.error or "tracking off" in done.error
    assert not (tmp_path / "out" / "model.pt").exists()


def test_another_store(run: Run, scan: Path, tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(tables, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert train(run, tmp_path / "out", scan).code == 0
    assert [r.info.status for r in tracked(tmp_path)] == ["FINISHED"]
    assert not (tmp_path / "out" / "mlflow.db").exists()


def test_a_failed_run_is_tracked_as_failed(run: Run, scan: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    done = train(run, out, scan)
    assert done.code == 1
    assert "not finite" in done.error
    assert [r.info.status for r in tracked(out)] == ["FAILED"]
    assert not (out / "model.pt").exists()
