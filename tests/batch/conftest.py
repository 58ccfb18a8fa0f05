"""Fixtures of the batch's tests."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial

import pytest
from batch_scans import EPOCH, Identity
from job_scans import Run, call

from n2s_med.batch.task import Begin, Outcome, Recipe, Task, work
from n2s_med.jobs.denoise import DenoiseJob


@pytest.fixture(autouse=True)
def moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are made at the same moment."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process."""
    return partial(call, capsys)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is this process."""

    def run_here(tasks: Iterable[Task], recipes: Sequence[Recipe], begin: Begin) -> Generator[tuple[Task, Outcome]]:
        for task in tasks:
            begin(task)
            yield task, work(task, recipes[0])

    monkeypatch.setattr("n2s_med.batch.job.run_local", run_here)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch, here: None) -> None:
    """The worker is this process, and writes each scan as it is."""
    del here
    monkeypatch.setattr(DenoiseJob, "one", Identity.one)
