"""Tracking of a bundle's training: what arrives at a server, how runs end, and that no patient is in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pydicom
import pytest
import torch
import uvicorn
from bundle_runs import TINY, cause, command_words, run, small_bundle, workflow, write_scan
from ignite.engine import Events

from n2s_med.phantoms import pet_phantom, write_pet_series

SECRETS = ("Doe", "Jane", "ID-4711")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on a free port."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not answer")


def secret_series(folder: Path) -> Path:
    """A PET phantom of an invented patient."""
    activity = pet_phantom((24, 24, 12), (7.0, 7.0, 7.0)).activity
    counts = torch.poisson(activity.clamp_min(0) / 50, generator=torch.Generator().manual_seed(3))
    write_pet_series(counts * 50, folder, spacing_mm=(7.0, 7.0, 7.0), gain=50.0)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "ID-4711"
        dataset.save_as(file)
    return folder


def everything_in(client: mlflow.MlflowClient, run_id: str, folder: Path) -> str:
    """All that a run holds, as text."""
    found = client.get_run(run_id)
    folder.mkdir()
    downloaded = Path(client.download_artifacts(run_id, "", str(folder)))
    files = [file for file in downloaded.rglob("*") if file.is_file()]
    texts = [str(found.to_dictionary()), *map(str, files)]
    return "\n".join(texts + [file.read_bytes().decode("latin-1") for file in files])


def test_a_training_arrives_at_a_server_without_the_patient(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    bundle = small_bundle("pet_poisson", tmp_path / "pet")
    series = secret_series(tmp_path / "Doe_Jane")
    run(bundle, "train", dataset_dir=str(series), track=True, run_name="first", **(TINY | {"epochs": 2}))
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("n2s-med pet_poisson")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params["modality"] == "pet"
    assert found.data.params["epochs"] == "2"
    assert found.data.params["data.training.scans"] == "1"
    assert len(found.data.params["data.training.sha256"]) == len(found.data.params["data.validation.sha256"]) == 64
    assert {"environment.torch", "environment.n2s_med"} <= found.data.tags.keys()
    steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "risk")]
    assert steps == [0, 1, 2]
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 2
    assert found.data.metrics["train_time_s"] > 0
    assert found.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert [entry.path for entry in client.list_artifacts(found.info.run_id, "pictures")] == [
        "pictures/held_out_block.png"
    ]
    held = everything_in(client, found.info.run_id, tmp_path / "held")
    assert not [secret for secret in SECRETS if secret in held]
    assert "data.json" in held
    _model_serves(server, experiment.experiment_id, client)


def _model_serves(server: str, experiment_id: str, client: mlflow.MlflowClient) -> None:
    """The model of a run answers to arrays of any size: loaded as MLflow's or PyTorch's, and served."""
    (logged,) = client.search_logged_models([experiment_id])
    mlflow.set_tracking_uri(server)
    try:
        model = mlflow.pyfunc.load_model(logged.model_uri)
        network = mlflow.pytorch.load_model(logged.model_uri, map_location="cpu")
    finally:
        mlflow.set_tracking_uri(None)
    assert model.metadata.signature is not None
    v = np.random.default_rng(0).normal(size=(1, 1, 9, 12, 10)).astype(np.float32)
    assert model.predict(v).shape == v.shape
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(model.predict(v), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(_served(model, v), expected, rtol=1e-4, atol=1e-5)


def _served(model: mlflow.pyfunc.PyFuncModel, v: Any) -> Any:
    """What MLflow's scoring server, of ``mlflow models serve``, answers."""
    from mlflow.pyfunc import scoring_server  # warns as it is imported

    port = free_port()
    served = uvicorn.Server(uvicorn.Config(scoring_server.init(model), port=port, log_level="error"))
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        while not served.started:
            assert thread.is_alive(), "the server ended"
            time.sleep(0.05)
        body, kind = json.dumps({"inputs": v.tolist()}).encode(), {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, kind)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return json.load(answer)["predictions"]
    finally:
        served.should_exit = True
        thread.join()


def runs_in(bundle: Path) -> list[mlflow.entities.Run]:
    """The runs that a bundle of CT has tracked."""
    client = mlflow.MlflowClient(f"sqlite:///{bundle}/eval/mlflow.db")
    experiment = client.get_experiment_by_name("n2s-med ct_gaussian")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_the_data_are_told_by_their_use(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    for seed in range(3):
        write_scan("ct_gaussian", tmp_path / f"{seed}.nii.gz", seed=seed)
    rows = {"training": ["0.nii.gz", "1.nii.gz"], "validation": ["2.nii.gz"]}
    (tmp_path / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    run(bundle, "train", dataset_dir=str(tmp_path / "list.json"), track=True, **TINY)
    (tmp_path / "2.nii.gz").write_bytes((tmp_path / "0.nii.gz").read_bytes())
    run(bundle, "train", dataset_dir=str(tmp_path / "list.json"), track=True, **TINY)
    after, before = (found.data.params for found in runs_in(bundle))
    assert (before["data.training.scans"], before["data.validation.scans"]) == ("2", "1")
    assert before["data.training.sha256"] == after["data.training.sha256"]
    assert before["data.validation.sha256"] != after["data.validation.sha256"]


def test_an_interrupted_training_is_told_as_killed(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    made = workflow(bundle, "train", dataset_dir=str(scan), track=True, **TINY)

    def interrupt() -> None:
        raise KeyboardInterrupt

    made.trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert [found.info.status for found in runs_in(bundle)] == ["KILLED"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_terminated_training_is_told_and_goes_on_in_its_run(how, tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    keys = TINY | {"epochs": 1000, "track": True, "patience": 1000}
    told = [word for key, value in keys.items() for word in (f"--{key}", value)]
    words, environment = command_words(
        "run", "--config_file", "configs/train.json", "--dataset_dir", scan, *told, module="monai.bundle"
    )
    process = subprocess.Popen(words, cwd=bundle, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 900
        while not list((bundle / "models").glob("checkpoint_epoch=*.pt")):
            assert process.poll() is None, "the training ended"
            assert time.monotonic() < end, "the training did not begin"
            time.sleep(0.1)
        process.send_signal(how)
        process.wait(timeout=300)
    finally:
        process.kill()
        process.wait()
    (first,) = runs_in(bundle)
    assert first.info.status == ("KILLED" if how == signal.SIGTERM else "RUNNING")
    run(bundle, "train", dataset_dir=str(scan), resume=True, **(keys | {"epochs": 1001, "patience": 0}))
    (found,) = runs_in(bundle)
    assert (found.info.run_id, found.info.status) == (first.info.run_id, "FINISHED")
    assert not (bundle / "models" / "checkpoint_run.json").exists()


def test_a_training_that_fails_does_not_stay_running(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    made = workflow(bundle, "train", dataset_dir=str(scan), track=True, **TINY)
    made.trainer.loss_function = lambda *_: torch.tensor(1.0) / 0
    with pytest.raises(Exception, match=r".+"):
        made.run()
    assert [found.info.status for found in runs_in(bundle)] == ["FAILED"]


def test_a_server_that_is_not_there_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    before = (bundle / "models" / "model.pt").read_bytes()
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    made = workflow(bundle, "train", dataset_dir=str(scan), track=True, **TINY)
    with pytest.raises(RuntimeError) as refused:
        made.run()
    assert "127.0.0.1:9" in str(cause(refused.value))
    assert made.trainer.state.iteration == 0
    assert (bundle / "models" / "model.pt").read_bytes() == before


def test_monais_own_tracking_ends_its_runs(tmp_path):
    bundle = small_bundle("ct_gaussian", tmp_path / "ct")
    scan = write_scan("ct_gaussian", tmp_path / "scan.nii.gz")
    keys = {"dataset_dir": str(scan), "tracking": "mlflow"}
    run(bundle, "train", run_name="trained", **keys, **TINY)
    run(bundle, "train", "evaluate", run_name="evaluated", **keys, orientations=1, precision="fp32")
    run(bundle, "inference", kind="infer", run_name="inferred", **keys, orientations=1, precision="fp32")
    client = mlflow.MlflowClient(f"sqlite:///{bundle}/eval/mlruns.db")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert {found.info.run_name for found in runs} >= {"trained", "evaluated"}
    assert {found.info.status for found in runs} == {"FINISHED"}
    (trained,) = (found for found in runs if found.info.run_name == "trained")
    assert "train_loss" in trained.data.metrics
