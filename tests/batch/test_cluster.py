"""Workers of a Dask cluster: what the loss of one, or of a connection, costs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from batch_scans import Deadly, Hungry, Identity, Watched, content, images, wait_for
from job_scans import files_below
from test_workers import job, states

from n2s_med.batch import BatchJob
from n2s_med.batch.task import Outcome, Recipe, Task
from n2s_med.errors import ConfigurationError, N2SError, PartialError

distributed = pytest.importorskip("distributed", reason="Dask is not installed")

HERE = Path(__file__).parent

pytestmark = pytest.mark.usefixtures("here")


@contextmanager
def cluster(workers: int = 1, *, threads: int = 1, processes: bool = False, **options: Any) -> Iterator[Any]:
    """A cluster on this machine; its workers are threads of this process, unless they are processes."""
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=processes, dashboard_address=None, protocol="tcp",
        **options,
    ) as started:  # fmt: skip
        yield started


class Line:
    """A line to a TCP address that can be cut."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").partition(":")
        self._target = host, int(port)
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Cut all connections; new ones may be made."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut all connections, for ever."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._ends += [near, far]
                threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()

    @staticmethod
    def _pass_on(near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError), near, far:
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    (far if end is near else near).sendall(data)


@contextmanager
def far_worker(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, as it is started on another machine."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    process = subprocess.Popen([*command, "--no-dashboard"], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watched(tmp_path: Path, scheduler: str) -> tuple[BatchJob, Watched]:
    (tmp_path / "marks").mkdir()
    batch = job(Watched, tmp_path, scheduler=scheduler, job={"marks": tmp_path / "marks"})
    assert isinstance(batch.job, Watched)
    return batch, batch.job


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def undisturbed(tmp_path: Path) -> dict[str, str]:
    """What a batch on this machine writes."""
    images(tmp_path / "undisturbed" / "in")
    job(Identity, tmp_path / "undisturbed").run(lambda _: None)
    return content(tmp_path / "undisturbed" / "out")


def test_scans_that_fail_and_that_do_not(tmp_path: Path) -> None:
    images(tmp_path / "in")
    (tmp_path / "in" / "b.nii").write_bytes(b"no image")
    with cluster(threads=2) as started, pytest.raises(PartialError, match="1 of 3 scans failed"):
        job(Identity, tmp_path, scheduler=started.scheduler_address).run(lambda _: None)
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("failed", 1), "c.nii": ("done", 1)}
    assert content(tmp_path / "out").items() <= undisturbed(tmp_path).items()


@pytest.mark.parametrize(("given", "threads"), [(None, 4), (3, 3)])
def test_workers_share_the_cores_of_their_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None, threads: int
) -> None:
    images(tmp_path / "in")
    used: list[int | None] = []

    def worked(task: Task, recipe: Recipe) -> Outcome:  # noqa: ARG001
        used.append(recipe.threads)
        return Outcome()

    monkeypatch.setattr("n2s_med.batch.cluster.work", worked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with cluster(2) as started:
        job(Identity, tmp_path, scheduler=started.scheduler_address, threads=given).run(lambda _: None)
    assert used == [threads] * 3


@pytest.mark.parametrize("kind", [Deadly, Hungry], ids=["killed", "out of memory"])
def test_a_worker_that_ends_in_the_middle(tmp_path: Path, kind: type[Deadly]) -> None:
    """Dask ends a worker that takes more memory than it may have."""
    images(tmp_path / "in")
    with cluster(processes=True, memory_limit="1500MiB") as started:
        denoising = {"mark": tmp_path / "mark"}
        summary = job(kind, tmp_path, scheduler=started.scheduler_address, job=denoising).run(lambda _: None)
    assert summary.states == {"done": 3}
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("done", 2), "c.nii": ("done", 1)}
    assert files_below(tmp_path / "out") == ["a.nii", "b.nii", "batch.jsonl", "c.nii"]


def test_a_scan_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    """Those that wait behind it are not blamed, however many workers it costs."""
    from dask import config

    images(tmp_path / "in", "abcd")
    with (
        config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster(processes=True) as started,
        pytest.raises(PartialError, match="1 of 4 scans failed"),
    ):
        job(Deadly, tmp_path, scheduler=started.scheduler_address).run(lambda _: None)
    expected = {f"{name}.nii": ("done", 1) for name in "acd"} | {"b.nii": ("failed", 2)}
    assert states(tmp_path / "out") == expected
    assert files_below(tmp_path / "out") == ["a.nii", "batch.jsonl", "c.nii", "d.nii"]


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_worker_whose_connection_is_lost(tmp_path: Path, how: str) -> None:
    """It costs one retry of the scan that it was at, whose first attempt ends too, beside the other or after it."""
    images(tmp_path / "in")
    with cluster(0) as started, Line(started.scheduler_address) as line, far_worker(line.address) as far:
        batch, denoising = watched(tmp_path, started.scheduler_address)

        def lose() -> None:
            wait_for(lambda: denoising.begun()["b.nii"] == 1)
            (lost,) = started.scheduler.workers
            started.scale(1)
            wait_for(lambda: len(started.scheduler.workers) == 2)
            if how == "stopped":
                far.send_signal(signal.SIGSTOP)
                given_up = started.scheduler.restart_workers([lost], wait_for_workers=False, stimulus_id="not heard of")
                asyncio.run_coroutine_threadsafe(given_up, started.loop.asyncio_loop)
            else:
                (tmp_path / "marks" / "go").touch()
                line.cut()

        losing = meanwhile(lose)
        batch.run(lambda _: None)
        losing.join()
        assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("done", 2), "c.nii": ("done", 1)}
        (tmp_path / "marks" / "go").touch()
        far.send_signal(signal.SIGCONT)
        wait_for(lambda: denoising.ended() == 4 or far.poll() is not None)
    assert denoising.begun() == Counter({"a.nii": 1, "b.nii": 2, "c.nii": 1})
    assert content(tmp_path / "out") == undisturbed(tmp_path)


def test_a_batch_whose_connection_to_the_scheduler_is_lost(tmp_path: Path) -> None:
    """It costs one retry of the scan that was in work; it is connected anew."""
    images(tmp_path / "in")
    with cluster() as started, Line(started.scheduler_address) as line:
        batch, denoising = watched(tmp_path, line.address)

        def lose() -> None:
            wait_for(lambda: denoising.begun()["b.nii"] == 1)
            known = set(started.scheduler.tasks)
            line.cut()
            wait_for(lambda: bool(set(started.scheduler.tasks) - known))
            (tmp_path / "marks" / "go").touch()

        losing = meanwhile(lose)
        batch.run(lambda _: None)
        losing.join()
    assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("done", 2), "c.nii": ("done", 1)}
    assert denoising.begun() == Counter({"a.nii": 1, "b.nii": 2, "c.nii": 1})
    assert content(tmp_path / "out") == undisturbed(tmp_path)


def test_a_scheduler_that_is_lost_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch ends and says so; the next run takes up where it was."""
    images(tmp_path / "in")
    monkeypatch.setattr("n2s_med.batch.cluster._CONNECTING_S", 2)
    with cluster() as started, Line(started.scheduler_address) as line:
        batch, denoising = watched(tmp_path, line.address)

        def lose() -> None:
            wait_for(lambda: denoising.begun()["b.nii"] == 1)
            line.close()

        losing = meanwhile(lose)
        with pytest.raises(N2SError, match="connection to the scheduler was lost"):
            batch.run(lambda _: None)
        losing.join()
        assert states(tmp_path / "out") == {"a.nii": ("done", 1), "b.nii": ("begun", 0)}
        (tmp_path / "marks" / "go").touch()
        wait_for(lambda: denoising.ended() == 2)
        job(Identity, tmp_path, scheduler=started.scheduler_address).run(lambda _: None)
    assert content(tmp_path / "out") == undisturbed(tmp_path)


def test_a_cluster_without_workers_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "in")
    monkeypatch.setattr("n2s_med.batch.cluster._LONELY_S", 0)
    said: list[str] = []
    with cluster(0) as started:

        def say(line: str) -> None:
            said.append(line)
            started.scale(1)

        job(Identity, tmp_path, scheduler=started.scheduler_address).run(say)
    assert said[0] == "waiting: the cluster has no worker"
    assert len(said) == len(set(said))


def test_no_scheduler_and_no_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "in")
    monkeypatch.setattr("n2s_med.batch.cluster._CONNECTING_S", 0.5)
    with pytest.raises(ConfigurationError, match="no Dask scheduler answers"):
        job(Identity, tmp_path, scheduler="tcp://127.0.0.1:1").run(lambda _: None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match=r"n2s-med\[cluster\]"):
        job(Identity, tmp_path, scheduler="tcp://127.0.0.1:1").run(lambda _: None)
