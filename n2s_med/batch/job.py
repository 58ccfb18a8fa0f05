"""The batch: plan a tree of scans, denoise what is to be done, and keep the manifest."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from n2s_med.atomic import check_free, tidy_below
from n2s_med.batch.cluster import run_cluster
from n2s_med.batch.local import run_local
from n2s_med.batch.manifest import Manifest, Record, State, known
from n2s_med.batch.plan import AnyTree, Layout, Step, options_hash, steps_of
from n2s_med.batch.task import Outcome, Recipe, Task
from n2s_med.compute import PrecisionName
from n2s_med.errors import N2SError, PartialError
from n2s_med.jobs.denoise import DenoiseJob
from n2s_med.jobs.scans import Say
from n2s_med.volumes import Refusal, nothing_usable, shown

Outcomes = Generator[tuple[Task, Outcome]]


@dataclass(frozen=True)
class Summary:
    """What became of a batch.

    Attributes
    ----------
    states
        How many scans are in which state.
    trusted
        How many passed every trust check.
    manifest
        Where each is told.
    """

    states: Counter[State]
    trusted: int
    manifest: Path


@dataclass(frozen=True)
class BatchJob:
    """Denoise every scan of a tree.

    Attributes
    ----------
    source
        Folder of DICOM and NIfTI files, in any order and depth.
    output
        Folder for the results, laid out as ``source`` is, and for the manifest; of an earlier run of the same
        batch, or new.
    job
        How each scan is denoised; its paths, device and bar are the batch's affair.
    device, precision
        As for :meth:`n2s_med.compute.Compute.choose`.
    workers
        Processes on this machine; ``None`` takes one for each GPU, or one for every two cores.
    threads
        CPU threads of each worker; ``None`` shares out the cores.
    scheduler
        Address of a Dask scheduler, whose workers are used instead.
    layout
        How the two folders are laid out.
    overwrite
        Replace what is in a result's place.
    quiet
        Show no progress bars.
    """

    source: Path
    output: Path
    job: DenoiseJob
    device: str = "auto"
    precision: PrecisionName = "auto"
    workers: int | None = None
    threads: int | None = None
    scheduler: str | None = None
    layout: Layout = field(default_factory=AnyTree)
    overwrite: bool = False
    quiet: bool = False

    def plan(self) -> list[Step]:
        """Return what would be done with each scan; nothing is written.

        Raises
        ------
        N2SError
            The folder holds nothing to denoise, or an option or folder is refused.
        """
        records = known(self.output)
        return self._steps(self._found(records), records, options_hash(self.job, self.precision))

    def run(self, say: Say) -> Summary:
        """Denoise what is to be done, and say what becomes of each scan.

        Raises
        ------
        N2SError
            The folder holds nothing to denoise, an option or folder is refused, or no scan could be denoised.
        PartialError
            Some scans failed; why was said for each.
        """
        found = self._found(known(self.output))
        options = options_hash(self.job, self.precision)
        with Manifest(self.output) as manifest:
            tidy_below(self.output)
            self.layout.begin(self.source, self.output)
            manifest.forget_left_out()
            steps = self._steps(found, manifest.records, options)
            manifest.add(*(step.record(manifest.records.get(step.task.key)) for step in steps if step.state))
            for step in steps:
                if step.reason:
                    say(f"{step.state}: {shown(step.task.source)} ({step.task.scan}): {step.reason}")
            self._work(steps, options, manifest, say)
            tidy_below(self.output)
            records = [manifest.records[step.task.key] for step in steps]
        return self._summary(records, manifest.path)

    def _work(self, steps: Sequence[Step], options: str, manifest: Manifest, say: Say) -> None:
        """Denoise what is to be done, and write down each scan as it ends."""
        todo = [step.task for step in steps if step.state is None]
        bar = tqdm(desc="batch", total=len(todo), unit="scan", disable=self.quiet)
        with bar, closing(self._outcomes(todo, options, manifest, say)) as outcomes:
            for task, outcome in outcomes:
                record = _record(task, outcome, options)
                manifest.add(record)
                with tqdm.external_write_mode(file=sys.stderr):
                    _tell(say, record, outcome)
                bar.update()

    def _found(self, records: Mapping[str, Record]) -> tuple[list[Task], list[Step]]:
        """Look for scans; refuse at once what cannot be read or written."""
        self.layout.check(self.source, self.output)
        check_free(self.output, overwrite=True)
        tasks, left_out = self.layout.find(self.source, records)
        if not tasks:
            refusals = [Refusal(self.source / s.task.source, s.task.scan, s.reason) for s in left_out]
            raise nothing_usable(self.source, refusals)
        return tasks, left_out

    def _steps(self, found: tuple[list[Task], list[Step]], records: Mapping[str, Record], options: str) -> list[Step]:
        tasks, left_out = found
        return [*steps_of(tasks, self.source, self.output, records, options, overwrite=self.overwrite), *left_out]

    def _outcomes(self, tasks: Sequence[Task], options: str, manifest: Manifest, say: Say) -> Outcomes:
        def begin(task: Task) -> None:
            manifest.add(Step(task).record(options=options))

        if self.scheduler:
            return run_cluster(tasks, self._recipe(self.device, self.threads), self.scheduler, begin, say)
        return run_local(tasks, self._local_recipes(len(tasks)), begin)

    def _local_recipes(self, scans: int) -> list[Recipe]:
        """One recipe per process: a GPU each where there are any, and a share of the cores."""
        cores = len(os.sched_getaffinity(0))
        gpus = torch.cuda.device_count() if self.device in ("auto", "cuda") else 0
        count = min(self.workers or gpus or max(1, cores // 2), scans)
        threads = self.threads or max(1, cores // max(1, count))
        devices = [f"cuda:{n % gpus}" if gpus else self.device for n in range(count)]
        return [self._recipe(device, threads) for device in devices]

    def _recipe(self, device: str, threads: int | None) -> Recipe:
        quiet = self.quiet or self.scheduler is not None or not sys.stderr.isatty()
        job = replace(self.job, quiet=quiet, tracking=None)
        return Recipe(self.source.resolve(), self.output.resolve(), job, device, self.precision, threads)

    def _summary(self, records: Sequence[Record], manifest: Path) -> Summary:
        states = Counter(record.state for record in records)
        failed = states[State.FAILED] + states[State.EXISTS]
        if failed:
            kind = PartialError if states[State.DONE] else N2SError
            raise kind(
                f"{failed} of {failed + states[State.DONE]} scans failed",
                remedy="run the same command again to try them again; why each failed is in the manifest",
                path=manifest,
            )
        trusted = sum(record.state is State.DONE and not record.failed_checks for record in records)
        return Summary(states, trusted, manifest)


def _record(task: Task, outcome: Outcome, options: str) -> Record:
    return replace(
        Step(task).record(options=options),
        state=State.FAILED if outcome.reason else State.DONE,
        reason=outcome.reason,
        inputs_sha256=outcome.inputs_sha256,
        noise=outcome.noise,
        failed_checks=outcome.failed_checks,
        time_s=outcome.time_s,
        peak_memory_mib=outcome.peak_memory_mib,
        attempts=outcome.attempts,
    )


def _tell(say: Say, record: Record, outcome: Outcome) -> None:
    scan = f"{shown(record.source)} ({record.scan})"
    for warning in outcome.warnings:
        say(f"warning: {scan}: {warning}")
    again = f", attempt {record.attempts}" if record.attempts > 1 else ""
    what = record.reason or f"{record.time_s:.1f} s{again}"
    say(f"{record.state}: {scan}: {what}")
