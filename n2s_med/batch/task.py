"""One scan as a task: what a worker is told, what it does and what it answers."""

from __future__ import annotations

import hashlib
import json
import resource
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from n2s_med.atomic import whole
from n2s_med.compute import Compute, PrecisionName, set_threads
from n2s_med.errors import InputError, N2SError
from n2s_med.jobs.denoise import DenoiseJob, Result
from n2s_med.jobs.places import stem_name
from n2s_med.score import ScoreModel, base_model
from n2s_med.volumes import FileGroup, Volume, stated

_ONE_AT_A_TIME = threading.Lock()
"""A worker of a cluster may have several threads; a scan takes all that one process is given."""


@dataclass(frozen=True)
class Task:
    """One scan to denoise.

    Attributes
    ----------
    key, scan, source, output
        As in the manifest.
    group
        Key of its file group.
    files
        Of its group, relative to the input folder.
    number
        Which of the scans in the files it is, counted from 0.
    modality
        Where it is known from elsewhere than the files.
    overwrite
        Whether what lies at the output is replaced.
    inputs_stat
        As in the manifest.
    sd_map
        Place of the SD map relative to the output folder; empty for its usual one beside the result.
    sd_sidecar
        Content of the JSON file beside the SD map; empty for none.
    sidecars
        Content of further files, by their path relative to the output folder.
    metadata
        JSON of what is said of the image elsewhere than beside it; empty for nothing.
    """

    key: str
    scan: str
    source: str
    output: str
    group: str
    files: tuple[str, ...]
    number: int
    modality: str | None = None
    overwrite: bool = False
    inputs_stat: str = ""
    sd_map: str = ""
    sd_sidecar: str = ""
    sidecars: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""

    def options(self, shared: str) -> str:
        """Hash over all that determines what is written but the inputs, given that of the batch's options."""
        if not self.sidecars:
            return shared
        texts = json.dumps([shared, self.sd_sidecar, sorted(self.sidecars.items())])
        return hashlib.sha256(texts.encode()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What all tasks of a batch share.

    Attributes
    ----------
    root, out
        Input and output folder, absolute.
    job
        How each scan is denoised; its paths, device and bar are set by the worker.
    device, precision
        As for :meth:`n2s_med.compute.Compute.choose`, which the worker calls.
    threads
        CPU threads of a worker; ``None`` leaves what the process has.
    """

    root: Path
    out: Path
    job: DenoiseJob
    device: str = "auto"
    precision: PrecisionName = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes
    ----------
    reason
        Why it failed; empty where it is done.
    lasting
        Whether it would fail again: it was refused, not struck by something unexpected.
    warnings
        What must be said of the result.
    noise, failed_checks, inputs_sha256, time_s, peak_memory_mib, attempts
        As in the manifest.
    """

    reason: str = ""
    lasting: bool = True
    warnings: tuple[str, ...] = ()
    noise: str = ""
    failed_checks: tuple[str, ...] = ()
    inputs_sha256: str = ""
    time_s: float = 0.0
    peak_memory_mib: float = 0.0
    attempts: int = 1


def work(task: Task, recipe: Recipe) -> Outcome:
    """Denoise one scan; its files appear whole or not at all. Any failure is an outcome with its reason."""
    began = time.perf_counter()
    with _ONE_AT_A_TIME:
        try:
            outcome = _done(task, recipe)
        except N2SError as error:
            outcome = Outcome(N2SError(error.cause, remedy=error.remedy).args[0])
        except MemoryError:
            outcome = Outcome("out of memory. Give fewer --workers or a smaller --chunk-voxels.", lasting=False)
        except Exception as error:
            outcome = Outcome(_unexpected(error), lasting=False)
    return replace(
        outcome,
        time_s=round(time.perf_counter() - began, 3),
        peak_memory_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


def _done(task: Task, recipe: Recipe) -> Outcome:
    if recipe.threads:
        set_threads(recipe.threads)
    job = replace(
        recipe.job,
        source=recipe.root,
        output=recipe.out / task.output,
        modality=recipe.job.modality or task.modality,
        compute=Compute.choose(recipe.device, recipe.precision),
        overwrite=task.overwrite,
    )
    files = tuple(recipe.root / name for name in task.files)
    volume = _loaded(task, files)
    digest = content_hash(files)
    result = job.one(volume, job.output, _model(job, volume), lambda _: None)
    sidecars = {} if job.deidentifier else dict(task.sidecars)
    if task.sd_map and result.sd_map:
        result.sd_map.replace(recipe.out / task.sd_map)
        sidecars[f"{stem_name(task.sd_map)}.json"] = task.sd_sidecar
    for name, text in sidecars.items():
        with whole(recipe.out / name, overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return Outcome(
        noise=result.noise,
        warnings=tuple(result.warnings),
        failed_checks=_failed(result),
        inputs_sha256=digest,
    )


def _loaded(task: Task, files: tuple[Path, ...]) -> Volume:
    """The task's volume, if the files still hold what was planned."""
    sources = FileGroup(task.group, files).survey().sources
    if task.number >= len(sources) or sources[task.number].label != task.scan:
        raise InputError("its files have changed since they were looked through", remedy="run the batch again")
    volume = sources[task.number].arrays()
    if task.metadata:
        volume.meta.update(stated(json.loads(task.metadata), volume.shape[0], files[0]))
    return volume


def _model(job: DenoiseJob, volume: Volume) -> ScoreModel | None:
    """The model to start from; read once, and then kept by the worker."""
    return None if job.from_scratch else _kept(job.model, 2 if volume.shape[-1] == 1 else 3)


@lru_cache(maxsize=2)
def _kept(path: Path | None, spatial_dims: int) -> ScoreModel:
    return ScoreModel.load(path) if path else base_model(spatial_dims)


def json_text(content: Mapping[str, Any]) -> str:
    """Return a JSON file's text."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def content_hash(files: tuple[Path, ...]) -> str:
    """Hash over the content of files, in their order.

    Raises
    ------
    InputError
        One of them cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"a file of it cannot be read ({error.strerror})", remedy="restore it") from error
    return digest.hexdigest()


def _failed(result: Result) -> tuple[str, ...]:
    return tuple(dict.fromkeys(verdict.name for verdict in result.verdicts if not verdict.passed))


def _unexpected(error: Exception) -> str:
    """Name an error and its place; its text is left out, as it may quote the file."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}."
        " Run n2s-med denoise on it to see all of it."
    )


Begin = Callable[[Task], None]
"""Called before a task is handed to a worker."""
