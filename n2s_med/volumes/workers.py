"""Processes that read and write DICOM beside this one.

pydicom is Python, of which a process runs one line at a time. So others parse, decode and encode while this one imports
PyTorch, judges a result and draws its report. They are forked while this process is small and has no threads: the
command line begins so (:func:`workers`). Where nobody did, or a system cannot, all of it is done here.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from n2s_med.errors import N2SError
from n2s_med.volumes.quiet import quiet

MOST = 8
"""Workers of one process at most: files come no faster from most disks."""
AT_ONCE = 8
"""Files that a worker is handed at once, at most."""

_ENDING = signal.SIGINT, signal.SIGTERM
_pool: ProcessPoolExecutor | None = None
_hands = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def workers(count: int | None = None) -> Iterator[None]:
    """Have so many processes (by default one a core) read and write for this one while the block runs.

    There are none where there is one core for all, or this process has threads already and cannot be forked.
    """
    global _pool, _hands
    forkable = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    count = min(count or len(os.sched_getaffinity(0)), MOST) if forkable else 1
    if count == 1:
        yield
        return
    with ProcessPoolExecutor(count, get_context("fork"), _begin) as pool:
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # half forked, it could not be ended
        try:
            pool.submit(os.getpid)  # which forks them all
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        _pool, _hands = pool, count
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            _pool = None


def hands() -> int:
    """How many processes read and write: the workers, or this one alone."""
    return _hands if _pool else 1


@contextmanager
def spread(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Iterable[Result]]:
    """Begin ``function`` of each item, one of this package's, and yield the results in order, as they are waited for.

    Errors are raised in their place. When the block ends, none of it runs any more. Without workers, or for a single
    item, each is done here when its result is asked for.

    Raises
    ------
    N2SError
        A worker was killed.
    """
    global _pool
    futures: list[Future[list[Result]]] = []
    try:
        if _handed_out(function, items, futures):
            yield chain.from_iterable(future.result() for future in futures)
        else:
            with quiet():
                yield map(function, items)
    except BrokenProcessPool as error:
        _pool = None  # what comes next is done here
        raise N2SError(
            "a process that reads and writes files was killed", remedy="give it more memory, or a single thread"
        ) from error
    finally:
        wait([future for future in futures if not future.cancel()])


def _handed_out(function: Callable[[Item], Result], items: Sequence[Item], futures: list[Future[list[Result]]]) -> bool:
    """Begin ``function`` of several items by the workers, and say whether there are any."""
    global _pool
    if _pool is None or len(items) < 2:
        return False
    size = min(AT_ONCE, -(-len(items) // MOST))
    try:
        for n in range(0, len(items), size):
            futures.append(_pool.submit(_each, function, items[n : n + size]))
    except BrokenProcessPool:  # one was killed since they last had work
        _pool = None
        return False
    return True


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with quiet():
        return [function(item) for item in items]


def _begin() -> None:
    """Leave the interruptions of the parent's group to the parent."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one may have come before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    end_with_parent()


def end_with_parent() -> None:
    """Have this process, which another one began, end at once when that does, however it ends."""
    parent = parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


class Room:
    """A volume of zeros, each of its X-Y planes in one piece of memory.

    Parameters
    ----------
    shape, dtype
        Of the volume (C, X, Y, Z).
    place
        The file that is its memory; ``None`` takes memory of this process alone.

    Attributes
    ----------
    array
        The volume.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, place: str | None = None) -> None:
        self._made = shape, dtype, place
        channels, *plane, planes = shape
        if place is None:
            flat: NDArray[Any] = np.zeros((channels, planes, *plane), dtype)
        else:
            with Path(place).open("r+b") as file:
                flat = np.frombuffer(mmap.mmap(file.fileno(), 0), dtype).reshape(channels, planes, *plane)
        self.array = flat.transpose(0, 2, 3, 1)

    def __reduce__(self) -> tuple[type[Room], tuple[object, ...]]:
        assert self._made[2] is not None, "a worker would have zeros of its own"
        return Room, self._made


@contextmanager
def room(shape: Sequence[int], dtype: DTypeLike) -> Iterator[Room]:
    """Yield room for a volume, that workers fill too; what is in it outlives the block.

    Raises
    ------
    MemoryError
        There is not so much.
    """
    alone = Room(shape, dtype)
    if _pool is None:
        yield alone
        return
    file = os.memfd_create("volume")
    try:
        try:
            os.truncate(file, alone.array.nbytes)
            shared = Room(shape, dtype, f"/proc/{os.getpid()}/fd/{file}")
        except OSError as error:
            raise MemoryError from error
        yield shared
    finally:
        os.close(file)
