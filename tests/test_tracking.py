"""Tracking: how runs end and go on, what they hold, what a dead server costs, and that off means off."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sqlalchemy.orm import Session
from torch import nn

from n2s_med.errors import InputError, N2SError, OutputError
from n2s_med.tracking import environment, open_tracker


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """The developer's own server stays out of the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """One store for all: making its tables takes a second. Its name tries to break addresses."""
    return tmp_path_factory.mktemp("store") / "Größe 100%20 of #1?"


def opened(store: Path, **changes):
    return open_tracker(True, **({"experiment": "tests", "run_name": "run", "directory": store} | changes))


def client(store: Path) -> mlflow.MlflowClient:
    from sqlalchemy.engine import URL

    return mlflow.MlflowClient(str(URL.create("sqlite", database=str(store.resolve() / "mlflow.db"))))


def run_of(store: Path, tracker) -> mlflow.entities.Run:
    return client(store).get_run(tracker.run_id)


def artifacts(store: Path, tracker) -> dict[str, bytes]:
    root = store / "mlartifacts" / tracker.run_id / "artifacts"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_parameters_and_metrics_arrive(store):
    with opened(store, run_name="pet") as tracker:
        tracker.params({"law": "poisson", "gain": 0.5, "inputs_sha256": "9f"})
        for step in (1, 2):
            tracker.metrics({"loss": 1 / step, "sure": 2.0}, step=step)
    run = run_of(store, tracker)
    assert run.info.run_name == "pet"
    assert run.data.params == {"law": "poisson", "gain": "0.5", "inputs_sha256": "9f"}
    assert {name: value for name, value in run.data.metrics.items() if not name.startswith("system/")} == {
        "loss": 0.5,
        "sure": 2.0,
    }
    history = client(store).get_metric_history(tracker.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(143), "KILLED"),
        (ValueError("no"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_runs_end_in_the_state_they_ended_in(store, error, status):
    tracker = opened(store)
    with nullcontext() if error is None else pytest.raises(type(error)):
        stop(tracker, error)
    run = run_of(store, tracker)
    assert run.info.status == status
    assert run.info.end_time is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_being_written(store, monkeypatch, number):
    commit, told = Session.commit, []

    def interrupted(session):
        if not told:
            told.append(signal.raise_signal(number))
        commit(session)

    def track():
        monkeypatch.setattr(Session, "commit", interrupted)
        tracker.metrics({"loss": 0.5}, 1)
        pytest.fail("the signal did not come back")

    tracker = opened(store)
    before = signal.signal(number, lambda *_: sys.exit(143))
    try:
        with pytest.raises(SystemExit):
            stop(tracker, None, track)
    finally:
        signal.signal(number, before)
    run = run_of(store, tracker)
    assert (run.data.metrics["loss"], run.info.status) == (0.5, "KILLED")


def stop(tracker, error: BaseException | None, before=lambda: None) -> None:
    with tracker:
        before()
        if error is not None:
            raise error


def test_nothing_is_written_before_the_run_is_entered(tmp_path):
    tracker = opened(tmp_path / "store")
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on(store):
    first = opened(store)
    with pytest.raises(KeyboardInterrupt):
        stop(first, KeyboardInterrupt(), before=lambda: first.params({"steps": 100, "seed": 1}))
    for _ in range(2):
        with opened(store, run_id=first.run_id) as second:
            assert run_of(store, second).info.status == "RUNNING"
            second.params({"steps": 200, "seed": 1, "new": "x"})
    with opened(store, run_id=first.run_id) as third:
        third.params({"steps": 300})
        third.metrics({"loss": 0.5}, step=200)
    run = run_of(store, third)
    assert third.run_id == first.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "100", "seed": "1", "steps.2": "200", "new": "x", "steps.3": "300"}
    assert run.data.metrics["loss"] == 0.5


def test_a_run_that_does_not_exist_cannot_go_on(store):
    with pytest.raises(N2SError, match=r"not found.*switch tracking off\.$"), opened(store, run_id="0" * 32):
        pytest.fail("entered")


def test_the_environment_is_told_without_the_user(store):
    with opened(store) as tracker:
        pass
    run, files = run_of(store, tracker), artifacts(store, tracker)
    told = json.loads(files["environment/environment.json"])
    assert told["torch"] == torch.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"n2s_med", "monai", "threads", "platform"} <= told.keys()
    assert run.data.tags["environment.torch"] == torch.__version__
    assert f"mlflow=={mlflow.__version__}" in files["environment/requirements.txt"].decode().split("\n")
    assert "mlflow.user" not in run.data.tags
    assert run.data.tags["mlflow.source.name"] == "n2s-med"


LOAD = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_the_machines_load_is_recorded_even_of_a_short_run_and_no_thread_stays(store):
    with opened(store) as tracker:
        assert len(monitors()) == 1
        end = time.process_time() + 0.3
        while time.process_time() < end:  # some work
            pass
    assert not monitors()
    run = run_of(store, tracker)
    assert run.info.status == "FINISHED"
    assert run.data.metrics.keys() >= LOAD
    assert 0 < run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert 0 < run.data.metrics["system/system_memory_usage_percentage"] < 100
    assert len(client(store).get_metric_history(tracker.run_id, next(iter(LOAD)))) == 1


def test_load_is_recorded_at_intervals_and_goes_on_with_the_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    first = opened(store)
    with pytest.raises(ValueError, match="stop"):
        stop(first, ValueError("stop"), before=lambda: wait_for_load(store, first, samples=3))
    assert not monitors()
    assert run_of(store, first).info.status == "FAILED"
    before = load_steps(store, first)
    with opened(store, run_id=first.run_id):
        pass
    steps = load_steps(store, first)
    assert steps == list(range(len(steps)))
    assert len(steps) > len(before) >= 3


def load_steps(store: Path, tracker) -> list[int]:
    return [m.step for m in client(store).get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")]


def wait_for_load(store: Path, tracker, *, samples: int) -> None:
    end = time.monotonic() + 60
    while len(load_steps(store, tracker)) < samples:
        assert time.monotonic() < end, "no load was recorded"
        time.sleep(0.1)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_told_only_from_the_codes_own_repository(tmp_path, monkeypatch):
    module = tmp_path / "module.py"
    module.write_text("one")
    monkeypatch.setattr(environment, "PACKAGE", module)
    assert environment.commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-qm", "another project around the installed package")
    assert environment.commit() is None
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-qm", "ours")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert environment.commit() == head
    assert environment.source_tags()["mlflow.source.git.commit"] == head
    module.write_text("two")
    assert environment.commit() == f"{head}-dirty"


def test_pictures_and_files_arrive(store, tmp_path):
    figure = Figure(figsize=(1, 1))
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    with opened(store) as tracker:
        tracker.picture(figure, "from figure")
        tracker.picture(b"\x89PNG", "bytes")
        tracker.artifact(tmp_path / "report.json")
        tracker.artifact(tmp_path / "folder")
        with pytest.raises(InputError, match="no such file"):
            tracker.artifact(tmp_path / "absent")
    files = artifacts(store, tracker)
    assert Image.open(BytesIO(files["pictures/from figure.png"])).format == "PNG"
    assert files["pictures/bytes.png"] == b"\x89PNG"
    assert files["report.json"] == b"{}"
    assert files["folder/a.txt"] == b"a"


class Net(nn.Module):
    """Any size in, the same size out; one answer in training, another in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 1, 3, padding=1), nn.Dropout(0.5))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.body(y)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_model_loads_and_answers_at_any_size_without_the_patients_voxels(store, monkeypatch):
    network = Net().train()
    scan = torch.full((1, 2, 40, 5, 6), 7.25)
    with opened(store) as tracker:
        tracker.model(network, scan)
    mlflow.set_tracking_uri(None)  # whatever earlier tests of this process left
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client(store).tracking_uri)
    assert network.training
    assert run_of(store, tracker).info.status == "FINISHED"
    loaded = mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/model")
    y = np.random.default_rng(0).normal(size=(2, 2, 9, 7, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(loaded.predict(y), expected, rtol=1e-5, atol=1e-6)
    inputs = loaded.metadata.signature.inputs.inputs[0]
    assert inputs.shape == (-1, 2, -1, -1, -1)
    assert loaded.input_example.shape == (1, 2, 32, 5, 6)
    assert not np.any(loaded.input_example == 7.25)
    saved = [p.read_bytes() for p in store.rglob("*example*.json")]
    assert saved
    assert not any(b"7.25," in text for text in saved)


def test_saving_a_model_leaves_the_users_own_mlflow_alone(store, tmp_path):
    own = f"sqlite:///{tmp_path}/own.db"
    mlflow.set_tracking_uri(own)
    try:
        with opened(store) as tracker:
            tracker.model(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 4, 4))
        assert mlflow.get_tracking_uri() == own
        assert mlflow.active_run() is None
    finally:
        mlflow.set_tracking_uri(None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_down_is_told_in_one_line_and_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(N2SError, match="does not answer") as refused, opened(tmp_path):
        pytest.fail("entered")
    assert time.monotonic() - started < 5
    message = str(refused.value)
    assert "\n" not in message
    assert "secret" not in message
    assert "MLFLOW_TRACKING_URI" in message
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert list(tmp_path.iterdir()) == []


class Refusing(http.server.BaseHTTPRequestHandler):
    """Some other web server."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>\nnothing here</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_no_tracking_server_is_told_in_one_line(tmp_path, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(N2SError, match="404") as refused, opened(tmp_path):
            pytest.fail("entered")
        assert "\n" not in str(refused.value)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("uri", ["nonsense://x", "postgresql+absent://user:secret@127.0.0.1/x"])
def test_an_address_that_mlflow_does_not_know_is_told(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(N2SError, match="tracking at") as refused, opened(tmp_path):
        pytest.fail("entered")
    assert "secret" not in str(refused.value)


def test_another_store_can_be_named(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client(store).tracking_uri)
    with opened(tmp_path / "unused") as tracker:
        tracker.params({"a": 1})
    assert run_of(store, tracker).data.params == {"a": "1"}
    assert not (tmp_path / "unused" / "mlflow.db").exists()


def test_a_damaged_store_is_told(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database " * 500)
    with pytest.raises(N2SError, match="not a database"), opened(tmp_path):
        pytest.fail("entered")


def test_a_place_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="no tracking store can be made"), opened(tmp_path / "file"):
        pytest.fail("entered")


def test_artifacts_that_cannot_be_written_are_told_and_fail_the_run(store):
    def obstruct() -> None:
        (store / "mlartifacts" / tracker.run_id / "artifacts" / "pictures").write_text("")
        tracker.picture(b"png", "x")

    tracker = opened(store)
    with pytest.raises(OutputError, match=r"tracking cannot write .*Free space"):
        stop(tracker, None, before=obstruct)
    assert run_of(store, tracker).info.status == "FAILED"


def test_a_run_that_cannot_be_ended_does_not_hide_why_it_stopped(store, monkeypatch):
    def gone(*_args, **_kwargs):
        raise mlflow.exceptions.MlflowException("gone")

    def cut_off() -> None:
        monkeypatch.setattr(tracker._client, "set_terminated", gone)

    tracker = opened(store)
    with pytest.raises(ValueError, match="the real reason") as stopped:
        stop(tracker, ValueError("the real reason"), before=cut_off)
    assert "gone" in stopped.value.__notes__[0]
    tracker = opened(store)
    with pytest.raises(N2SError, match="gone"):
        stop(tracker, None, before=cut_off)


def test_an_environment_that_cannot_be_logged_leaves_nothing_running(store, monkeypatch):
    monkeypatch.setattr("n2s_med.tracking.environment.installed", lambda: 1 / 0)
    tracker = opened(store)
    with pytest.raises(ZeroDivisionError), tracker:
        pytest.fail("entered")
    assert run_of(store, tracker).info.status == "FAILED"


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_tracker(False, experiment="e", run_name="r", directory=tmp_path) as tracker:
        tracker.params({"a": 1})
        tracker.metrics({"b": 1.0}, step=1)
        tracker.picture(b"", "p")
        tracker.artifact(tmp_path / "absent")
        tracker.model(nn.Identity(), torch.ones(1))
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_absent_are_left_out():
    (pin,) = environment.pins("torch", "no-such-package")
    assert pin.partition("+")[0] == f"torch=={torch.__version__.partition('+')[0]}"  # not all builds tell theirs


OFF = """
import sys, pathlib
from n2s_med.tracking import open_tracker
with open_tracker(False, experiment="e", run_name="r", directory=pathlib.Path("off")) as tracker:
    tracker.params({"a": 1})
assert "mlflow" not in sys.modules and "matplotlib" not in sys.modules
"""

ON = """
import pathlib
from n2s_med.tracking import open_tracker
with open_tracker(True, experiment="e", run_name="r", directory=pathlib.Path("on")) as tracker:
    tracker.params({"a": 1})
"""


def test_off_imports_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", OFF], cwd=tmp_path, check=True)


def test_on_prints_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", ON], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["on"]
