"""Workers on this machine: one process each, which keeps its model and takes one scan at a time.

A process that dies (killed, out of memory) costs one attempt of one scan; another process takes its place.
Processes end with the batch: they leave an interrupted scan tidily when they are told to stop, and at once when the
batch itself was killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection

from n2s_med.batch.task import Begin, Outcome, Recipe, Task, work
from n2s_med.volumes.workers import end_with_parent

ATTEMPTS = 2
"""How often a scan is tried whose worker died or that failed unexpectedly."""
_PATIENCE_S = 20
"""How long a process that was told to stop may tidy up."""


def run_local(tasks: Iterable[Task], recipes: Sequence[Recipe], begin: Begin) -> Generator[tuple[Task, Outcome]]:
    """Denoise scans with one process per recipe; yield each with its outcome as it ends.

    ``begin`` is called before a scan is handed to a process.
    """
    waiting = deque((task, 1) for task in tasks)
    workers = [_Worker(number, recipe) for number, recipe in enumerate(recipes[: len(waiting)])]
    try:
        for worker in workers:
            worker.take(*waiting.popleft(), begin)
        while busy := [worker for worker in workers if worker.task]:
            heard = connection.wait([worker.ear for worker in busy])
            for worker in (worker for worker in busy if worker.ear in heard):
                task, attempt, outcome = worker.answer()
                if not outcome.lasting and attempt < ATTEMPTS:
                    waiting.append((task, attempt + 1))
                else:
                    yield task, replace(outcome, attempts=attempt)
            for worker in workers:
                if worker.task is None and waiting:
                    worker.take(*waiting.popleft(), begin)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join()


class _Worker:
    """A process and what it is doing."""

    def __init__(self, number: int, recipe: Recipe) -> None:
        self.task: Task | None = None
        self._attempt = 0
        self._number, self._recipe = number, recipe
        self._start()

    @property
    def ear(self) -> Connection:
        """Where its answer, or its end, is heard."""
        return self._connection

    def take(self, task: Task, attempt: int, begin: Begin) -> None:
        """Give it a scan; a second attempt replaces what the first one left."""
        begin(task)
        self.task, self._attempt = task, attempt
        with suppress(BrokenPipeError):  # it has died: its end is heard as its answer
            self._connection.send(replace(task, overwrite=True) if attempt > 1 else task)

    def answer(self) -> tuple[Task, int, Outcome]:
        """The outcome of its scan; a new process takes the place of one that died."""
        assert self.task is not None
        task, self.task = self.task, None
        try:
            outcome = self._connection.recv()
        except (EOFError, OSError):
            outcome = self._death()
            self._start()
        return task, self._attempt, outcome

    def stop(self) -> None:
        """Tell the process to end; it leaves a scan that it is at."""
        self._connection.close()
        if self.task:
            self._process.terminate()

    def join(self) -> None:
        """Wait until it has tidied up, but not for ever."""
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._recipe), daemon=True)
        with _inherited(self._number, self._recipe.threads):
            self._process.start()
        theirs.close()

    def _death(self) -> Outcome:
        self._connection.close()
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code}"
        hint = " Out of memory? Give fewer --workers or a smaller --chunk-voxels." if code == -signal.SIGKILL else ""
        return Outcome(f"its worker {how}.{hint}", lasting=False)


def _serve(tasks: Connection, recipe: Recipe) -> None:
    """Take scans and answer with their outcomes until the batch ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            tasks.send(work(tasks.recv(), recipe))


def _leave(*_: object) -> None:
    """Leave the scan; a second signal would interrupt the tidying up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


@contextmanager
def _inherited(number: int, threads: int | None) -> Iterator[None]:
    """Let a process that starts now inherit its threads and its bar's line, and leave Ctrl-C to the batch."""
    settings: Mapping[str, str] = {
        "TQDM_POSITION": str(number + 1),
        "TQDM_LEAVE": "",
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    resource_tracker.ensure_running()  # started with the first process, it would let Ctrl-C through to it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
