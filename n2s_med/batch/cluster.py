"""Workers of a Dask cluster, which see the same folders under the same paths.

The cluster runs already and has an address, or a file says how a queueing system starts its workers, see
:mod:`n2s_med.batch.queues`. Dask gives a scan to another worker when a worker or its connection is lost. The scan's
files are put in place whole by whichever attempt ends, and are the same from each.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from n2s_med.batch.local import ATTEMPTS
from n2s_med.batch.queues import Queue, is_queue_file
from n2s_med.batch.task import Begin, Outcome, Recipe, Task, work
from n2s_med.errors import ConfigurationError, N2SError

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECTING_S = 30


def run_cluster(tasks: Sequence[Task], recipe: Recipe, where: str, begin: Begin) -> Generator[tuple[Task, Outcome]]:
    """Denoise scans on a cluster; yield each with its outcome as it ends.

    Parameters
    ----------
    tasks
        The scans.
    recipe
        How they are denoised; without a number of threads, they are those of a queue's jobs, or the cores of a
        worker's machine shared out among the workers there.
    where
        Address of a Dask scheduler, or a file that describes the jobs of a queue.
    begin
        Called before a scan is handed to the cluster.

    Raises
    ------
    ConfigurationError
        Dask is not installed, there is no scheduler, or the file is not right.
    N2SError
        The scheduler was lost.
    """
    queue = Queue.read(Path(where)) if is_queue_file(where) else None
    if queue and recipe.threads is None:
        recipe = replace(recipe, threads=queue.cores)
    with _client(queue or where, jobs=len(tasks)) as client:
        from distributed import as_completed
        from distributed.comm import CommClosedError

        running: dict[Future, tuple[Task, int]] = {}
        ended = as_completed(loop=client.loop)

        def submit(task: Task, attempt: int) -> None:
            again = replace(task, overwrite=True)  # the plan found the place free; a lost worker may have filled it
            future = client.submit(_work, again, recipe, key=f"{task.key}-{attempt}", pure=False)
            running[future] = task, attempt
            ended.add(future)

        try:
            for task in tasks:
                begin(task)
                submit(task, 1)
            for future in ended:
                task, attempt = running.pop(future)
                outcome = _outcome(future)
                if not outcome.lasting and attempt < ATTEMPTS:
                    submit(task, attempt + 1)
                else:
                    yield task, replace(outcome, attempts=attempt)
        except CommClosedError as error:
            raise N2SError("the connection to the scheduler was lost", remedy="run the same command again") from error
        finally:
            client.cancel(list(running))


@contextmanager
def _client(where: Queue | str, jobs: int) -> Iterator[Client]:
    """Connect to the scheduler at an address, or to one of our own, for which a queue runs up to ``jobs`` jobs."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            "--scheduler needs Dask, which is not installed", remedy="pip install 'n2s-med[cluster]'"
        ) from error
    if isinstance(where, Queue):
        with where.cluster(jobs) as cluster, Client(cluster, set_as_default=False) as client:
            yield client
        return
    try:
        client = Client(where, timeout=_CONNECTING_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {where}", remedy="start one with dask scheduler, or check the address"
        ) from error
    with client:
        yield client


def _work(task: Task, recipe: Recipe) -> Outcome:
    """Denoise one scan on a worker."""
    return work(task, recipe if recipe.threads else replace(recipe, threads=_share_of_cores()))


def _share_of_cores() -> int:
    """Cores of this worker's process over the workers on its machine; Dask itself would let it have one thread."""
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    workers = sync(worker.loop, worker.scheduler.identity)["workers"]
    hosts = [other["host"] for other in workers.values()]
    return max(1, len(os.sched_getaffinity(0)) // hosts.count(workers[worker.address]["host"]))


def _outcome(future: Future) -> Outcome:
    """What a worker answered; where none could, why."""
    from distributed import KilledWorker

    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return Outcome("its workers died again and again. Out of memory? Give them more, or a smaller --chunk-voxels.")
    return Outcome(f"the cluster could not run it ({type(error).__name__ if error else future.status}).")
