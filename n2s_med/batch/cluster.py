"""Workers of a Dask cluster, which see the same folders under the same paths.

The cluster runs already and has an address, or a file says how a queueing system starts its workers, see
:mod:`n2s_med.batch.queues`. Dask gives a scan to another worker when a worker or its connection is lost. The scan's
files are put in place whole by whichever attempt ends, and are the same from each.

No more scans are handed out at once than the cluster has threads: Dask blames the loss of a worker on every scan that
waits there, and what the connection to the scheduler costs when it is lost is what was handed out.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from n2s_med.batch.local import ATTEMPTS
from n2s_med.batch.queues import Queue, is_queue_file
from n2s_med.batch.task import Begin, Outcome, Recipe, Task, work
from n2s_med.errors import ConfigurationError, N2SError
from n2s_med.jobs.scans import Say

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECTING_S = 30
"""How long a scheduler is waited for, and one that was lost."""
_LOOK_S = 2
"""How often it is looked for new workers."""
_LONELY_S = 30
"""How long no worker may be there before it is said."""


def run_cluster(
    tasks: Sequence[Task], recipe: Recipe, where: str, begin: Begin, say: Say
) -> Generator[tuple[Task, Outcome]]:
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
    say
        Told where there are no workers.

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
    waiting = deque((task, 1) for task in tasks)
    with _client(queue or where, jobs=len(tasks)) as client:
        cluster = _Cluster(client, recipe, say)
        try:
            while waiting or cluster.handed_out:
                for _ in range(min(cluster.free_threads(), len(waiting))):
                    task, attempt = waiting.popleft()
                    begin(task)
                    cluster.hand_out(task, attempt)
                for task, outcome in cluster.answers():
                    if not outcome.lasting and outcome.attempts < ATTEMPTS:
                        waiting.append((task, outcome.attempts + 1))
                    else:
                        yield task, outcome
        finally:
            cluster.take_back()


class _Cluster:
    """The workers, and what was handed out to them.

    Attributes
    ----------
    handed_out
        Scans that have not ended, and which attempt it is.
    """

    def __init__(self, client: Client, recipe: Recipe, say: Say) -> None:
        self.handed_out: dict[Future, tuple[Task, int]] = {}
        self._client, self._recipe, self._say = client, recipe, say
        self._ended: SimpleQueue[Future] = SimpleQueue()
        self._last_seen, self._said = time.monotonic(), False

    def free_threads(self) -> int:
        """How many scans may be handed out; one where no worker is there, for clusters that start them on demand."""
        threads = self._threads()
        now = time.monotonic()
        if threads:
            self._last_seen, self._said = now, False
        elif now - self._last_seen > _LONELY_S and not self._said:
            self._say("waiting: the cluster has no worker")
            self._said = True
        return max(0, max(1, threads) - len(self.handed_out))

    def hand_out(self, task: Task, attempt: int) -> None:
        """Give a scan to the cluster; what the plan found free, a lost worker may have filled."""
        again = replace(task, overwrite=True)
        future = self._client.submit(_work, again, self._recipe, key=f"{task.key}-{attempt}", pure=False)
        self.handed_out[future] = task, attempt
        future.add_done_callback(self._ended.put)

    def answers(self) -> Iterator[tuple[Task, Outcome]]:
        """Wait a moment, and yield what has ended."""
        try:
            future = self._ended.get(timeout=_LOOK_S)
        except Empty:
            return
        task, attempt = self.handed_out.pop(future)
        yield task, self._outcome(future, attempt)

    def take_back(self) -> None:
        """Let nothing more of what was handed out be begun."""
        if self._client.status == "running":
            self._client.cancel(list(self.handed_out))

    def _threads(self) -> int:
        while True:
            self._await_connection()
            try:
                return sum(self._client.nthreads().values())
            except OSError:  # the client notices itself that its connection is lost, and connects anew
                time.sleep(_LOOK_S)

    def _await_connection(self) -> None:
        """Wait while a connection that was lost is made anew.

        Raises
        ------
        N2SError
            The scheduler does not answer.
        """
        while self._client.status == "connecting":
            time.sleep(0.1)
        if self._client.status != "running":
            raise N2SError("the connection to the scheduler was lost", remedy="run the same command again")

    def _outcome(self, future: Future, attempt: int) -> Outcome:
        """What a worker answered; where none could, why."""
        from distributed import CancelledError, KilledWorker

        try:
            outcome: Outcome = future.result()
            return replace(outcome, attempts=attempt + self._lost_workers(future))
        except KilledWorker as error:
            return Outcome(
                "its workers died again and again. Out of memory? Give them more, or a smaller --chunk-voxels.",
                attempts=attempt + error.allowed_failures,
            )
        except CancelledError:
            self._await_connection()
            return Outcome("the connection to the scheduler was lost again.", lasting=False, attempts=attempt)
        except Exception as error:
            return Outcome(f"the cluster could not run it ({type(error).__name__}).", attempts=attempt)

    def _lost_workers(self, future: Future) -> int:
        """How many workers were lost at a scan that has ended; none where the scheduler can be asked no more."""
        key = future.key
        try:
            lost: int = self._client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks[key].suspicious)
        except OSError:
            return 0
        return lost


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
