"""The plan: which scans a tree holds, where each result goes, and what is to be done with each."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import n2s_med
from n2s_med.atomic import check_apart
from n2s_med.batch.manifest import Record, State
from n2s_med.batch.task import Task, content_hash, json_text
from n2s_med.errors import InputError
from n2s_med.jobs.denoise import DenoiseJob
from n2s_med.jobs.places import sd_maps, slug, stem_name
from n2s_med.score import ScoreModel
from n2s_med.volumes import FileGroup, Refusal, file_groups, is_nifti_name, read_json, shown, sidecar_of

EXISTS = (
    "its place is taken by what was not made from these inputs with these options."
    " Choose another output folder or give --overwrite."
)
SIDECARS = (".json", ".bval", ".bvec")
"""Endings of what lies beside a NIfTI image and goes along with it."""
INSIDE = "its place lies inside another result, made when its folder held one series. Choose another output folder."


class Layout(Protocol):
    """How a tree of scans is laid out, and with it the tree of results."""

    def check(self, root: Path, out: Path) -> None:
        """Refuse folders that this layout cannot be read from or written to."""
        ...

    def find(self, root: Path, records: Mapping[str, Record]) -> tuple[list[Task], list[Step]]:
        """Return the scans below ``root``, each with its place, and steps for what is left out."""
        ...

    def begin(self, root: Path, out: Path) -> None:
        """Write what the output folder needs before the first result."""
        ...


@dataclass(frozen=True)
class Step:
    """What is to be done with one scan.

    Attributes
    ----------
    task
        What a worker would be told.
    state
        ``None`` where it is to be denoised; ``DONE`` where an earlier run did; else why not.
    reason
        In words.
    """

    task: Task
    state: State | None = None
    reason: str = ""

    def record(self, previous: Record | None = None, options: str = "") -> Record:
        """The manifest's line of this step before anything is done; what was finished before stays told."""
        task = self.task
        blank = Record(task.key, State.BEGUN, task.scan, task.source, output=task.output)
        if self.state is State.EXISTS:
            return replace(previous or blank, state=State.EXISTS, reason=self.reason)
        if self.state is State.DONE and previous:
            return replace(previous, state=State.DONE, reason="", inputs_stat=task.inputs_stat)
        return replace(
            blank,
            state=self.state or State.BEGUN,
            reason=self.reason,
            files=len(task.files),
            inputs_stat=task.inputs_stat,
            options=task.options(options),
        )


class AnyTree:
    """DICOM and NIfTI files in any order and depth; the results mirror it.

    A result lies where its source does: a NIfTI image under its own name; the only series of a folder as that
    folder; one of several under its label. A scan that is in the manifest keeps its place.
    """

    def check(self, root: Path, out: Path) -> None:
        """Refuse an output in or around the input, which the next run would read.

        Raises
        ------
        InputError
            There is no such input folder.
        OutputError
            One of the folders holds the other.
        """
        if not root.is_dir():
            raise InputError("no such folder", remedy="check the path, or use denoise for one file", path=root)
        check_apart(root, out)

    def find(self, root: Path, records: Mapping[str, Record]) -> tuple[list[Task], list[Step]]:
        """Return the scans in the order of their files, and steps for what is left out.

        Raises
        ------
        InputError
            A folder cannot be read.
        """
        groups, refusals = file_groups(root)
        tasks: list[Task] = []
        for group in groups:
            found = group.survey()
            refusals += found.refusals
            tasks += [_task(root, group, number, source.label) for number, source in enumerate(found.sources)]
        return [_with_sidecars(root, task) for task in _placed(tasks, records)], [
            _left_out(root, refusal) for refusal in refusals
        ]

    def begin(self, root: Path, out: Path) -> None:
        """Write nothing."""


def steps_of(
    tasks: Sequence[Task], root: Path, out: Path, records: Mapping[str, Record], options: str, *, overwrite: bool
) -> list[Step]:
    """Return what is to be done with each task, given what earlier runs did."""
    places = {record.output for record in records.values() if record.output}
    return [_step(task, root, out, records.get(task.key), places, options, overwrite) for task in tasks]


def options_hash(job: DenoiseJob, precision: str) -> str:
    """Hash over all that determines a result but the scan: options, weights and version of this package.

    Raises
    ------
    ModelError
        The model is missing or damaged.
    """
    content = {
        "version": n2s_med.__version__,
        "weights": _weights(job),
        "precision": precision,
        "from_scratch": job.from_scratch,
        "modality": job.modality,
        "noise": asdict(job.noise),
        "config": asdict(job.config) if job.config else None,
        "options": asdict(job.options),
        "deidentified": job.deidentifier.fingerprint if job.deidentifier else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _weights(job: DenoiseJob) -> list[str]:
    if job.from_scratch:
        return []
    if job.model:
        return [ScoreModel.load(job.model).hash]
    shipped = sorted((Path(n2s_med.__file__).parent / "weights").glob("*/model.pt"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped]


def table(steps: Iterable[Step]) -> str:
    """Return the plan as text: for each scan what it is, where it lies and what would be done."""
    return "\n".join(f"{_verb(step)}: {shown(step.task.source)} ({step.task.scan}){_what(step)}" for step in steps)


def _verb(step: Step) -> str:
    return {None: "denoise", State.DONE: "finished before"}.get(step.state, str(step.state))


def _what(step: Step) -> str:
    return f": {step.reason}" if step.reason else f" -> {shown(step.task.output)}"


# -- what there is -------------------------------------------------------------------------------------


def _task(root: Path, group: FileGroup, number: int, label: str) -> Task:
    files = tuple(file.relative_to(root).as_posix() for file in group.files)
    folders = {str(PurePosixPath(name).parent) for name in files}
    source = files[0] if len(files) == 1 else str(PurePosixPath(os.path.commonpath(folders)))
    return Task(
        f"{group.key[:24]}-{number}", label, source, "", group.key, files, number, inputs_stat=stat_hash(root, files)
    )


def stat_hash(root: Path, files: Iterable[str]) -> str:
    """Hash over names, sizes and modification times of files."""
    digest = hashlib.sha256()
    for name in files:
        try:
            stat = (root / name).stat()
        except OSError:
            continue  # it went while the tree was looked through: whoever reads it tells so
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _left_out(root: Path, refusal: Refusal) -> Step:
    source = refusal.path.relative_to(root).as_posix()
    key = hashlib.sha256(f"{source}\0{refusal.label}".encode(errors="surrogateescape")).hexdigest()[:24]
    return Step(Task(f"{key}-out", refusal.label, source, "", "", (), 0), State.LEFT_OUT, refusal.reason)


# -- where it goes -------------------------------------------------------------------------------------


def _placed(tasks: Sequence[Task], records: Mapping[str, Record]) -> list[Task]:
    homes = Counter(_home(task) for task in tasks)
    above = {parent for home in homes for parent in home.parents}
    proper = [_proper_place(task, homes, above) for task in tasks]
    taken = Counter(map(_stem, proper))
    outputs = (
        place if taken[_stem(place)] == 1 else _told_apart(place, task.key)
        for task, place in zip(tasks, proper, strict=True)
    )
    return [
        replace(task, output=known.output if (known := records.get(task.key)) and known.output else output)
        for task, output in zip(tasks, outputs, strict=True)
    ]


def _with_sidecars(root: Path, task: Task) -> Task:
    """Let what lies beside a NIfTI image go along: its metadata, and the b-values and directions of diffusion."""
    if not _is_image(task):
        return task
    image, stem = root / task.source, stem_name(task.output)
    beside = {ending: sidecar_of(image, ending) for ending in SIDECARS}
    try:
        texts = {f"{stem}{ending}": _sidecar(path, image) for ending, path in beside.items() if path}
    except (InputError, OSError):
        return task  # the image is refused for it when it is read
    return replace(task, sidecars=texts)


def _sidecar(path: Path, image: Path) -> str:
    if path.suffix != ".json":
        return path.read_text(encoding="utf-8", errors="replace")
    return json_text(read_json(path) | {"Description": "Denoised by n2s-med", "Sources": [image.name]})


def _home(task: Task) -> PurePosixPath:
    """The folder that holds the files of a scan."""
    source = PurePosixPath(task.source)
    return source.parent if len(task.files) == 1 else source


def _is_image(task: Task) -> bool:
    return is_nifti_name(Path(task.files[0]))


def _proper_place(task: Task, homes: Mapping[PurePosixPath, int], above: set[PurePosixPath]) -> str:
    home = _home(task)
    if _is_image(task):
        return task.files[0]
    if homes[home] == 1 and home not in above and home != PurePosixPath():
        return str(home)
    return str(home / slug(task.scan))


def _stem(place: str) -> str:
    """What the names of all that is written for a result begin with, as file systems without case see it."""
    return stem_name(place).lower().removesuffix(".sd")


def _told_apart(place: str, key: str) -> str:
    stem = stem_name(place)
    return f"{stem}-{key[:8]}{key[key.rindex('-') :]}{place[len(stem) :]}"


# -- what is to be done --------------------------------------------------------------------------------


def _step(
    task: Task,
    root: Path,
    out: Path,
    record: Record | None,
    places: set[str],
    options: str,
    overwrite: bool,
) -> Step:
    if any(str(parent) in places for parent in PurePosixPath(task.output).parents):
        return Step(task, State.EXISTS, INSIDE)
    there = any(os.path.lexists(path) for path in _results(task, out))
    finished = record is not None and _finished(task, root, record, options)
    if finished and os.path.lexists(out / task.output):
        return Step(task, State.DONE)
    ours = finished or (record is not None and record.state in (State.BEGUN, State.FAILED))
    if there and not (overwrite or ours):
        return Step(task, State.EXISTS, EXISTS)
    return Step(replace(task, overwrite=there))


def _results(task: Task, out: Path) -> Iterator[Path]:
    """Where the result, its SD map and what goes along lie."""
    target = out / task.output
    yield target
    yield from sd_maps(target)
    if task.sd_map:
        yield out / task.sd_map
    yield from (out / name for name in task.sidecars)


def _finished(task: Task, root: Path, record: Record, options: str) -> bool:
    """Whether an earlier run finished it with the same inputs and options."""
    if record.state not in (State.DONE, State.EXISTS) or record.options != task.options(options):
        return False
    if record.inputs_stat == task.inputs_stat:
        return True
    return record.inputs_sha256 == content_hash(tuple(root / name for name in task.files))
