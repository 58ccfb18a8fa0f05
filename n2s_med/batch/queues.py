"""Workers as jobs of a queueing system (Slurm, PBS and others), which dask-jobqueue submits and ends.

A file in YAML says what a job is; ``configs/slurm.yaml`` and ``configs/pbs.yaml`` show it. One job is one worker
process, which takes one scan at a time: with one GPU for a job, there is one worker for each GPU.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from n2s_med.batch.local import ATTEMPTS
from n2s_med.errors import ConfigurationError, N2SError

if TYPE_CHECKING:
    from dask_jobqueue import JobQueueCluster

SYSTEMS: Mapping[str, str] = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "htcondor": "HTCondorCluster",
}
"""Queueing systems: name in the file, and class of dask-jobqueue."""
_SUFFIXES = (".yaml", ".yml")
_OURS = ("cores", "memory", "processes", "worker_extra_args")
"""Options of dask-jobqueue that are not for the file to set."""


def is_queue_file(where: str) -> bool:
    """Say whether ``where`` names a file rather than the address of a scheduler."""
    return where.lower().endswith(_SUFFIXES)


@dataclass(frozen=True)
class Queue:
    """The jobs of a queueing system.

    Attributes
    ----------
    system
        A key of :data:`SYSTEMS`.
    jobs
        How many run at once, at most.
    cores
        CPU cores, and threads, of each.
    memory
        Of each, e.g. ``"16GB"``.
    options
        What else dask-jobqueue's class of this system takes: queue, account, walltime, directives, …
    path
        The file, for messages.
    """

    system: str
    jobs: int
    cores: int
    memory: str
    options: Mapping[str, Any]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file at ``path``.

        Raises
        ------
        ConfigurationError
            Dask is not installed, or the file is missing or not right.
        """
        try:
            import yaml
        except ImportError as error:
            raise _not_installed() from error
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError("no readable YAML", remedy="begin with configs/slurm.yaml", path=path) from error
        wanted = {field.name for field in fields(cls)} - {"path"}
        if not isinstance(content, dict) or not wanted - {"options"} <= set(content) <= wanted:
            raise ConfigurationError(
                f"its keys are not {', '.join(sorted(wanted))}", remedy="begin with configs/slurm.yaml", path=path
            )
        queue = cls(**{**content, "options": content.get("options") or {}, "path": path})
        queue._check()
        return queue

    def _check(self) -> None:
        if self.system not in SYSTEMS:
            raise ConfigurationError("its system is unknown", remedy=f"give {', '.join(SYSTEMS)}", path=self.path)
        counts = (self.jobs, self.cores)
        if not all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in counts):
            raise ConfigurationError("jobs and cores are no whole numbers above 0", path=self.path)
        if not isinstance(self.options, dict) or set(_OURS) & set(self.options):
            raise ConfigurationError(
                "its options are no mapping, or set what has a key of its own",
                remedy=f"leave {', '.join(_OURS)} out of them",
                path=self.path,
            )

    @contextmanager
    def cluster(self, jobs: int) -> Iterator[JobQueueCluster]:
        """Submit the jobs, ``jobs`` of them at most; they are ended with the block.

        Raises
        ------
        ConfigurationError
            dask-jobqueue is not installed, or does not take an option.
        N2SError
            The queueing system does not take a job.
        """
        with self.started() as cluster:
            for _ in range(min(self.jobs, jobs)):
                cluster.worker_spec.update(cluster.new_worker_spec())
            try:
                cluster.sync(cluster._correct_state)  # by scale(), a job that is refused is a line in a log, and a wait
            except (OSError, RuntimeError, ValueError) as error:
                _give_up(cluster)
                raise N2SError(
                    f"{self.system} did not take a job ({_last_line(error)})",
                    remedy="run where jobs are submitted, and correct the file",
                    path=self.path,
                ) from error
            yield cluster

    def started(self) -> JobQueueCluster:
        """Start a scheduler in this process, for which no job is submitted yet; a context manager.

        Raises
        ------
        ConfigurationError
            dask-jobqueue is not installed, or does not take an option.
        """
        library = _dask_jobqueue()
        import dask

        try:
            with dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}):
                return getattr(library, SYSTEMS[self.system])(
                    cores=self.cores,
                    memory=self.memory,
                    processes=1,
                    worker_extra_args=["--nthreads", "1"],  # a worker takes one scan at a time, on all of its cores
                    **self.options,
                )
        except (TypeError, ValueError, OSError) as error:
            raise ConfigurationError(
                f"dask-jobqueue does not take it ({_first_line(error)})", remedy="correct its options", path=self.path
            ) from error


def _dask_jobqueue() -> Any:
    """The library; its import would make Ctrl-C end the batch with code 0, so what it was is put back."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise _not_installed() from error
    signal.signal(signal.SIGINT, ctrl_c)
    return dask_jobqueue


def _give_up(cluster: JobQueueCluster) -> None:
    """Let a cluster end whose jobs were refused: it waits for those that it has."""
    from distributed import Status

    for worker in cluster.workers.values():
        if worker.job_id is None:
            worker.status = Status.failed


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _last_line(error: Exception) -> str:
    """What the system's command said, of all that dask-jobqueue tells."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _not_installed() -> ConfigurationError:
    return ConfigurationError(
        "jobs of a queue need dask-jobqueue, which is not installed", remedy="pip install 'n2s-med[cluster]'"
    )
