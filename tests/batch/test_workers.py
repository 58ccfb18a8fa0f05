"""Workers that die, a batch that is killed, Ctrl-C: one attempt of one scan is lost, and nothing is half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_scans import OPTIONS, Deadly, Identity, content, images
from job_scans import files_below

from n2s_med.batch import BatchJob, known
from n2s_med.batch.task import Outcome, Recipe, Task
from n2s_med.errors import ConfigurationError, PartialError

DEADLINE_S = 400
"""For processes to start on a machine that is busy with other work."""


def job(kind: type[Identity], tmp_path: Path, **options: Any) -> BatchJob:
    options = {"workers": 1, "threads": 1, "quiet": True} | options
    denoising = kind(Path(), Path(), from_scratch=True, **options.pop("job", {}))
    return BatchJob(tmp_path / "in", tmp_path / "out", denoising, device="cpu", precision="fp32", **options)


def states(out: Path) -> dict[str, tuple[str, int]]:
    return {record.source: (str(record.state), record.attempts) for record in known(out).values()}


def test_a_worker_that_is_killed_costs_one_attempt_of_one_scan(tmp_path: Path) -> None:
    images(tmp_path / "in", "abcd")
    said: list[str] = []
    summary = job(Deadly, tmp_path, workers=2, job={"mark": tmp_path / "mark"}).run(said.append)
    assert summary.states == {"done": 4}
    assert states(tmp_path / "out") == {f"{n}.nii": ("done", 2 if n == "b" else 1) for n in "abcd"}
    assert sorted(files_below(tmp_path / "out")) == ["a.nii", "b.nii", "batch.jsonl", "c.nii", "d.nii"]
    assert any("attempt 2" in line for line in said)


def test_a_scan_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    images(tmp_path / "in")
    said: list[str] = []
    with pytest.raises(PartialError, match="1 of 3 scans failed"):
        job(Deadly, tmp_path).run(said.append)
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("failed", 2), "c.nii": ("done", 1)}
    assert any("its worker was killed (signal 9). Out of memory?" in line for line in said)
    summary = job(Identity, tmp_path).run(said.append)
    assert summary.states == {"done": 3}
    assert sorted(files_below(tmp_path / "out")) == ["a.nii", "b.nii", "batch.jsonl", "c.nii"]


# -- the whole batch -----------------------------------------------------------------------------------


def command(source: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "n2s_med",
        "batch",
        str(source),
        str(out),
        *OPTIONS,
        "--noise",
        "gaussian",
        "--sigma",
        "10",
    ]


def wait_for(out: Path, state: str, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the manifest has so many lines of a state."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = (out / "batch.jsonl").read_bytes() if (out / "batch.jsonl").exists() else b""
        if lines.count(f'"state": "{state}"'.encode()) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the batch did not come to {count} scans {state}: {process.poll()}")


def test_the_batch_is_killed_and_run_again(tmp_path: Path) -> None:
    source = images(tmp_path / "in", "abc")
    undisturbed = subprocess.run([*command(source, tmp_path / "undisturbed"), "--sd-map"], capture_output=True)
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = tmp_path / "out"
    process = subprocess.Popen([*command(source, out), "--sd-map"], start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(out, "begun", 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = [r.source for r in known(out).values() if r.state == "done"]
    assert len(done) < 3
    again = subprocess.run([*command(source, out), "--sd-map"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not any(line.startswith(f"done: {name}") for name in done for line in again.stderr.splitlines())
    assert content(out) == content(tmp_path / "undisturbed")
    assert files_below(out) == files_below(tmp_path / "undisturbed")


INTERRUPTED = """
import sys
sys.path[:0] = json_paths
from pathlib import Path
from batch_scans import Slow
from test_workers import job
if __name__ == "__main__":
    try:
        job(Slow, Path(sys.argv[1])).run(print)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_ends_orderly(tmp_path: Path) -> None:
    """As a terminal sends it: to the batch and to its workers at once."""
    images(tmp_path / "in")
    here = Path(__file__).parent
    paths = json.dumps([str(here), str(here.parent)])
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED.replace("json_paths", paths))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    half = tmp_path / "out"
    deadline = time.monotonic() + DEADLINE_S
    while not list(half.glob(".slow.txt.partial-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert files_below(half) == ["batch.jsonl"]
    assert states(half) == {"a.nii": ("begun", 0)}


# -- Dask ----------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A cluster on this machine, its worker in this process."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        yield cluster.scheduler_address


def test_a_dask_cluster(tmp_path: Path, scheduler: str) -> None:
    images(tmp_path / "in")
    (tmp_path / "in" / "b.nii").write_bytes(b"no image")
    with pytest.raises(PartialError, match="1 of 3 scans failed"):
        job(Identity, tmp_path, scheduler=scheduler).run(lambda _: None)
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("failed", 1), "c.nii": ("done", 1)}
    local = job(Identity, tmp_path / "local")
    images(tmp_path / "local" / "in")
    local.run(lambda _: None)
    assert content(tmp_path / "out").items() <= content(tmp_path / "local" / "out").items()


@pytest.mark.parametrize(("given", "threads"), [(None, 4), (3, 3)])
def test_dask_workers_share_the_cores_of_their_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, threads: int
) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    images(tmp_path / "in")
    used: list[int | None] = []

    def worked(task: Task, recipe: Recipe) -> Outcome:  # noqa: ARG001
        used.append(recipe.threads)
        return Outcome()

    monkeypatch.setattr("n2s_med.batch.cluster.work", worked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        job(Identity, tmp_path, scheduler=cluster.scheduler_address, threads=given).run(lambda _: None)
    assert used == [threads] * 3


def test_a_dask_worker_that_is_killed(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    images(tmp_path / "in")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        denoising = {"mark": tmp_path / "mark"}
        summary = job(Deadly, tmp_path, scheduler=cluster.scheduler_address, job=denoising).run(lambda _: None)
    assert summary.states == {"done": 3}
    assert files_below(tmp_path / "out") == ["a.nii", "b.nii", "batch.jsonl", "c.nii"]


def test_no_scheduler_and_no_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "in")
    monkeypatch.setattr("n2s_med.batch.cluster._CONNECTING_S", 0.5)
    pytest.importorskip("distributed", reason="Dask is not installed")
    with pytest.raises(ConfigurationError, match="no Dask scheduler answers"):
        job(Identity, tmp_path, scheduler="tcp://127.0.0.1:1").run(lambda _: None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"n2s-med\[cluster\]"):
        job(Identity, tmp_path, scheduler="tcp://127.0.0.1:1").run(lambda _: None)
