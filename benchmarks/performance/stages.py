"""The stages of a job, each with its seconds.

    python -m performance.stages TOLD IN OUT

runs ``n2s-med denoise --adapt 0`` and writes what each stage took to the JSON file ``TOLD``. Nothing of the package is
imported before the clock runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STEP_LENGTH, NETWORK, AROUND = "step length by SURE", "network", "denoising, but for the network"

IMPORTS, READING, CHECKS, WRITING = "imports", "reading", "checks", "writing"
STAGES = {
    "scans_of": "noise",
    "residual_of": CHECKS,
    "verdicts": CHECKS,
    "shown": "report",
    "write_report": "report",
}
"""Functions of the job, and the stages that they are."""


class Clock:
    """Seconds spent in each stage; a stage inside another stops the outer one's clock."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self.stack, self.since = ["other"], time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what the block takes."""
        self._lap()
        self.stack.append(name)
        try:
            yield
        finally:
            self._lap()
            self.stack.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        self.own[self.stack[-1]] = self.own.get(self.stack[-1], 0.0) + now - self.since
        self.since = now

    def wrap(self, place: Any, name: str, stage: str) -> None:
        """Count every call of a function."""
        function: Callable[..., Any] = getattr(place, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **named)

        setattr(place, name, counted)

    def wrap_context(self, place: Any, name: str, stage: str) -> None:
        """Count what a context manager takes before and after its block."""
        function: Callable[..., AbstractContextManager[Any]] = getattr(place, name)

        @contextmanager
        def counted(*arguments: Any, **named: Any) -> Iterator[Any]:
            with ExitStack() as stack:
                with self.stage(stage):
                    given = stack.enter_context(function(*arguments, **named))
                yield given
                with self.stage(stage):
                    stack.close()

        setattr(place, name, counted)

    def wrap_network(self, network: type) -> None:
        """Count what the network takes, without what it waits for; within another network stage, not at all."""
        function: Callable[..., Iterator[Any]] = network.__call__

        def counted(streamed: Any, chunks: Iterable[Any], *passes: Any) -> Iterator[Any]:
            if STEP_LENGTH in self.stack:
                yield from function(streamed, chunks, *passes)
                return
            answers = function(streamed, self._apart(chunks), *passes)
            while True:
                with self.stage(NETWORK):
                    answer = next(answers, None)
                if answer is None:
                    return
                yield answer

        network.__call__ = counted  # type: ignore[method-assign]

    def _apart(self, chunks: Iterable[Any]) -> Iterator[Any]:
        """The chunks that a network is given, their making counted for the stage around."""
        iterator = iter(chunks)
        while True:
            with self.stage(AROUND):
                chunk = next(iterator, None)
            if chunk is None:
                return
            yield chunk


def main(told: Path, source: str, target: str) -> None:
    """Run the command in this process and tell its stages; what goes on beside them counts where it is waited for."""
    clock = Clock()
    with clock.stage(IMPORTS):
        from n2s_med import cli, options, volumes
    importing, survey_ahead = options.importing, volumes.survey_ahead

    @contextmanager
    def counted_imports() -> Iterator[None]:
        with clock.stage(IMPORTS), importing():
            yield
            _wrap(clock)

    def counted_survey(path: Path) -> Callable[[], Any]:
        found = survey_ahead(path)

        def waited() -> Any:
            with clock.stage(READING):
                survey = found()
            return replace(survey, sources=tuple(map(counted, survey.sources)))

        def counted(source: Any) -> Any:
            reading = SimpleNamespace(arrays=source.arrays)
            clock.wrap(reading, "arrays", READING)
            return replace(source, arrays=reading.arrays)

        return waited

    options.importing, volumes.survey_ahead = counted_imports, counted_survey
    try:
        cli.main(["denoise", source, target, "--adapt", "0", "--quiet", "--device", "cpu"])
    except SystemExit as ended:
        if ended.code:
            raise
    with clock.stage("other"):
        pass
    told.write_text(json.dumps({"stages": clock.own}))


def _wrap(clock: Clock) -> None:
    """Count the stages of a job, once its modules are there."""
    from n2s_med.denoise import Denoiser
    from n2s_med.jobs import denoise, outcome
    from n2s_med.score.stream import StreamedNetwork

    for name, stage in STAGES.items():
        clock.wrap(outcome if stage == CHECKS else denoise, name, stage)
    clock.wrap_context(denoise, "writing", WRITING)
    clock.wrap(Denoiser, "__call__", AROUND)
    clock.wrap(Denoiser, "_measure", STEP_LENGTH)
    clock.wrap_network(StreamedNetwork)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
