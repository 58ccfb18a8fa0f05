"""Workers of a Dask cluster, which see the same folders under the same paths.

Dask gives a scan to another worker when a worker or its connection is lost. The scan's files are put in place whole
by whichever attempt ends, and are the same from each.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from n2s_med.batch.local import ATTEMPTS
from n2s_med.batch.task import Begin, Outcome, Recipe, Task, work
from n2s_med.errors import ConfigurationError, N2SError

if TYPE_CHECKING:
    from distributed import Client, Future

_CONNECTING_S = 30


def run_cluster(tasks: Iterable[Task], recipe: Recipe, address: str, begin: Begin) -> Generator[tuple[Task, Outcome]]:
    """Denoise scans on the cluster whose scheduler is at ``address``; yield each with its outcome as it ends.

    ``begin`` is called before a scan is handed to the cluster.

    Raises
    ------
    ConfigurationError
        Dask is not installed, or there is no scheduler.
    N2SError
        The scheduler was lost.
    """
    client = _client(address)
    from distributed import as_completed
    from distributed.comm import CommClosedError

    running: dict[Future, tuple[Task, int]] = {}
    ended = as_completed(loop=client.loop)

    def submit(task: Task, attempt: int) -> None:
        again = replace(task, overwrite=True)  # the plan found the place free; a lost worker may have filled it
        future = client.submit(work, again, recipe, key=f"{task.key}-{attempt}", pure=False)
        running[future] = task, attempt
        ended.add(future)

    with client:
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


def _client(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            "--scheduler needs Dask, which is not installed", remedy="pip install 'n2s-med[cluster]'"
        ) from error
    try:
        return Client(address, timeout=_CONNECTING_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Dask scheduler answers at {address}", remedy="start one with dask scheduler, or check the address"
        ) from error


def _outcome(future: Future) -> Outcome:
    """What a worker answered; where none could, why."""
    from distributed import KilledWorker

    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    error = future.exception() if future.status == "error" else None
    if isinstance(error, KilledWorker):
        return Outcome("its workers died again and again. Out of memory? Give them more, or a smaller --tile-voxels.")
    return Outcome(f"the cluster could not run it ({type(error).__name__ if error else future.status}).")
