"""Ctrl-C and SIGTERM held back where they would break something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """Hold a Ctrl-C or SIGTERM back until the block has ended; a second one ends it.

    In threads other than the main one, which get no signals, nothing is done.
    """
    ours = threading.current_thread() is threading.main_thread()
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if ours else {}
    handlers = {number: handler for number, handler in found.items() if handler is not None}  # of Python's making
    came: list[int] = []

    def hold(number: int, _: object) -> None:
        came.append(number)
        if len(came) > 1:
            release()

    def release() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            first = came[0]
            came.clear()
            signal.raise_signal(first)

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield
    finally:
        release()
